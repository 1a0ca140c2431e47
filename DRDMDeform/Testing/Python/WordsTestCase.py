"""Sentences of drdm in the panel's words: none tells the user to use an option of the command line."""

import ast
import re
from pathlib import Path

from DRDMDeformLib.sections.texts import counted
from DRDMDeformLib.sections.words import inPanelWords
from modulesupport import ModuleTestCase

import DRDMLib

LIBRARY = Path(DRDMLib.__file__).parent
OPTION = re.compile(r"--[a-z]|'drdm [a-z]")
# What only the command line can reach: these files, and these beginnings of sentences.
OTHER_FILES = (
    *("parser.py", "arguments.py", "gallery.py", "jobs.py", "serve.py", "regenerate.py", "verify.py", "fit.py"),
    *("mirror.py", "mirroring.py", "reflection.py"),
)
OTHER_FOLDERS = ("loaders",)
OTHERS = (
    "These look like displacements in",
    "8 made in '8'. Register",
    "The case is in '8'. Register",
    "The model is in '8'; try it",
    "The scan is large, so its displacement field",
    "The scan shows no bone",
    "Which model?",
    "Labels keep their values in mirror images",
    "--jobs shares",
    "--only-field writes",
    "--keep takes values",
    "--describe '8'",
    "8 of the files of the run in",
    "8 Leave that out",
    "'8' holds coefficients of FNIRT",
    "'8' is not a field of FNIRT",
    "'8' says itself",
    "'8' is an array of displacements",
    "'8' is not the truth of a case",
    "'8' cannot be written; check the disk",
    "No subject of this dataset has several scans",
    "install it again (pip install",
)


def sentencesWithOptions():
    """The texts of the library that name an option; 8 stands for what is put into them."""
    for path in sorted(LIBRARY.rglob("*.py")):
        if path.name in OTHER_FILES or set(path.relative_to(LIBRARY).parts) & set(OTHER_FOLDERS):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner, docs = set(), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                inner |= {id(part) for part in ast.walk(node) if part is not node}
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr):
                docs.add(id(node.body[0].value))
        for node in ast.walk(tree):
            if id(node) in inner | docs:
                continue
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "8" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if OPTION.search(text) and " " in text.strip() and not text.startswith(OTHERS):
                yield text


class WordsTestCase(ModuleTestCase):
    needsTorch = False

    def testNoSentenceNamesAnOption(self):
        sentences = list(sentencesWithOptions())
        self.assertGreater(len(sentences), 20)
        for text in sentences:
            with self.subTest(text):
                said = inPanelWords(text)
                self.assertIsNone(OPTION.search(said), said)
                self.assertNotEqual(said, text)

    def testOtherTextsStay(self):
        for text in ("", "Ready.", "'/a/scan--1.nii.gz' cannot be read."):
            self.assertEqual(inPanelWords(text), text)

    def testCounted(self):
        self.assertEqual(counted(1, "1 result", "{n} results"), "1 result")
        self.assertEqual(counted(0, "1 result", "{n} results"), "0 results")
