"""The pages of the documentation: commands and snippets run, links lead somewhere, files that are named exist.

Commands run as they are written, on small images; options are added so that they are quick (``QUICK``). Of
``drdm models fetch``, ``drdm nnunet``, ``torchrun`` and ``srun`` the options are checked, of ``pip`` the extras, of
benchmarks that the file exists. Other programs (``sbatch``, ``cmake``, ``nnUNetv2_train``) and lines that begin with
``NAME=value`` are not run.
"""

import ast
import doctest
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from command_helpers import run_process
from support import smooth_image
from warm_processes import write_launcher

from DRDMLib.cli import main
from DRDMLib.cli.parser import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
CARDS = sorted((ROOT / "Resources" / "Models").glob("*.md"))
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
# Options added to a command so that it takes about a second.
QUICK = {
    "demo": ["--steps", "1", "-o", "drdm-demo"],
    "deform": ["--steps", "1", "--count", "1"],
    "augment": ["--steps", "1", "--copies", "1"],
    "synthesize": ["--steps", "1", "--copies", "1"],
    "challenge": ["--steps", "1", "--count", "1"],
    "train": ["--size", "16", "--iterations", "2", "--batch", "2", "--width", "8", "--depth", "1"],
}
PROGRAMS = ("drdm", "python", "python3", "pip", "torchrun", "srun", "sbatch", "cmake", "nnUNetv2_train")


def fenced(text, *kinds):
    """Contents of the fenced blocks of these kinds; blocks in a list are indented."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, kind, body in found if kind in kinds]


def commands(text):
    """Lines to type: those of shell blocks and of indented blocks."""
    lines = [line for block in fenced(text, "sh", "bash", "shell") for line in joined(block)]
    plain = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += re.findall(rf"^    ((?:{'|'.join(PROGRAMS)}) .*)$", plain, re.MULTILINE)
    return [line for line in (line.split("  #")[0].strip() for line in lines) if line and not line.startswith("#")]


def joined(block):
    return re.sub(r"\\\n\s*", " ", block).splitlines()


def inline(text):
    """Commands in a sentence or a table."""
    return re.findall(r"`(drdm [^`]+)`", text)


def subcommands():
    """Name -> its parser."""
    (action,) = (action for action in build_parser()._actions if action.dest == "command")
    return action.choices


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the files that the pages mention."""
    folder = tmp_path_factory.mktemp("pages é")
    scan = smooth_image((22, 20, 18), (2.0, 2.0, 2.5))
    organs = sitk.Cast(scan > 150, sitk.sitkUInt8)
    sitk.WriteImage(scan, str(folder / "scan.nii.gz"))
    sitk.WriteImage(organs, str(folder / "organs.nii.gz"))
    folders = dict.fromkeys(("scans", "Dataset001_Heart"), ("one", "two"))
    for name, cases in (folders | {"hearts": ("patient1_rest", "patient1_beat")}).items():
        for kind, image in (("images", scan), ("labels", organs)):
            (folder / name / kind).mkdir(parents=True)
            for case in cases:
                sitk.WriteImage(image, str(folder / name / kind / f"{case}.nii.gz"))
    (folder / "docs").mkdir()
    shutil.copytree(ROOT / "docs" / "examples", folder / "docs" / "examples")
    return folder


@pytest.fixture
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("DRDM_HOME", str(place / "home"))
    return place


def run_command(line, folder):
    """Run a line of a page, or check its options."""
    words = shlex.split(line)
    program = words[0]
    if program == "drdm":
        if words[1:3] == ["models", "fetch"] or words[1] == "nnunet":
            build_parser().parse_args(words[1:])
        else:
            assert run_drdm(words[1:], folder) == 0, line
    elif program in ("python", "python3") and words[1] == "-m":
        if words[2].startswith("benchmarks."):
            assert (ROOT / "Testing" / "benchmarks" / f"{words[2].partition('.')[2]}.py").is_file(), line
        else:
            assert importlib.util.find_spec(words[2]) is not None, line
            run([sys.executable, *words[1:]])
    elif program in ("python", "python3"):
        script = ROOT / words[1]
        assert script.is_file(), line
        if words[1] == "dev.py":
            assert words[2] in ("demo", "test", "docs"), line
        elif words[1].startswith("docs/examples/"):
            done = run_process(*words[2:], "--steps", 2, "--strangers", 1, code=script.read_text(encoding="utf-8"))
            assert done.returncode == 0, line + done.stdout + done.stderr
        else:
            compile(script.read_text(encoding="utf-8"), str(script), "exec")
    elif program == "pip":
        extras = re.search(r"\[([\w,]+)\]", line)
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        for extra in extras.group(1).split(",") if extras else ():
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), line
    elif program in ("torchrun", "srun"):
        rest = words[words.index("DRDMLib") + 1 :] if "DRDMLib" in words else words[words.index("drdm") + 1 :]
        build_parser().parse_args(rest)
    else:
        assert program in PROGRAMS or "=" in program or program in ("cd", "set", "export", "mkdir"), line


def run_drdm(words, folder):
    parsed = build_parser().parse_args(words)
    output = getattr(parsed, "output", None)
    if output and not getattr(parsed, "resume", False):
        # Another page may have named the same folder.
        shutil.rmtree(folder / output, ignore_errors=True)
    # The case that is shipped takes no options.
    quick = [] if words[:2] == ["challenge", "reference"] else QUICK.get(words[0], [])
    return main([*words, *quick])


def run(arguments):
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(arguments, env=environment, capture_output=True, encoding="utf-8", timeout=900)
    assert done.returncode == 0, " ".join(map(str, arguments)) + "\n" + done.stdout + done.stderr
    return done.stdout


def in_slicer(snippet):
    return bool(re.search(r"\b(slicer|logic|DRDMDeformLib)\b", snippet))


# Runs the snippets of each page in an empty scene with the sample, all in one process; its input has name -> code.
IN_SLICER = """
import json, sys, traceback
import standin; standin.install()
standin.load_module(sys.argv[1]); standin.finish_startup()
import SampleData, slicer
failed = []
for name, code in json.load(sys.stdin).items():
    slicer.mrmlScene.Clear(0)
    slicer.util.selectModule("DRDMDeform")
    SampleData.SampleDataLogic().downloadSamples("DRDMPhantom")
    try:
        exec(compile(code, name, "exec"), {"__name__": "__page__", "slicer": slicer, "SampleData": SampleData})
    except BaseException:
        traceback.print_exc()
        failed.append(name)
sys.exit(", ".join(failed) or 0)
"""


# The drawn scans of these tests have no anatomy, so no model fits them well.
@pytest.mark.filterwarnings("ignore:.*The model .* does not fit this scan well:DRDMLib.errors.FallbackWarning")
@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_can_be_done(name, there):
    """Run the commands and the Python of a page in their order; each continues from the one before."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for line in inline(text):
        command, *options = shlex.split(line)[1:]
        known = subcommands()[command]._option_string_actions
        assert {option for option in options if option.startswith("-")} <= set(known), line
    steps = re.compile(
        r"^ *```(?:python|sh|bash|shell)\n.*?^ *```|^    (?:drdm|python3?|pip|torchrun|srun) [^\n]*$", re.M | re.S
    )
    namespace = {"__name__": "__page__"}
    for step in (found.group(0) for found in steps.finditer(text)):
        python = fenced(step, "python")
        for package in ("torchio", "monai"):
            if python and re.search(rf"\b(import|from) {package}\b", python[0]):
                pytest.importorskip(package)
        if python and not in_slicer(python[0]):
            exec(compile(python[0], name, "exec"), namespace)
        elif not python:
            for line in commands(step):
                run_command(line, there)


def test_snippets_for_slicer_run(there, tmp_path):
    pytest.importorskip("slicer")
    pages = {}
    for name in NAMES:
        blocks = fenced((ROOT / name).read_text(encoding="utf-8"), "python")
        code = "\n".join(block for block in blocks if in_slicer(block))
        # Two pages have the same example.
        if code not in pages.values():
            pages[name] = code
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT / "Testing"), str(ROOT)]))
    done = subprocess.run(
        [sys.executable, "-c", IN_SLICER, str(ROOT / "DRDMDeform" / "DRDMDeform.py")],
        input=json.dumps({name: code for name, code in pages.items() if code}),
        env=environment | write_launcher(tmp_path),
        capture_output=True,
        encoding="utf-8",
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_sessions_print_what_they_say(name):
    blocks = fenced((ROOT / name).read_text(encoding="utf-8"), "pycon")
    session = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, name, name, 0)
    runner = doctest.DocTestRunner(verbose=False)
    report = []
    runner.run(session, out=report.append)
    assert runner.failures == 0, "".join(report)


def anchor(heading):
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES + CARDS, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, place = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if place:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert place in map(anchor, headings), link


@pytest.mark.parametrize("page", PAGES + CARDS, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
    """Paths of the project in backquotes."""
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:DRDMLib|DRDMDeform|Testing|Resources|docs|\.github)/[\w./-]+)`", text):
        assert (ROOT / path).exists() or "NAME" in path or path.startswith("docs/reference"), path


def all_strings_in_code():
    """All texts in the code: the strings of every module, format fields cut out."""
    found = []
    for folder in ("DRDMLib", "DRDMDeform/DRDMDeformLib"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            found += [piece for text in strings for piece in re.split(r"\{[^{}]*\}", text)]
    return " | ".join(found)


def test_messages_that_are_explained_exist():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| *")]
    quoted = [text for row in rows for text in re.findall(r"(?<!\*)\*([^*|]{12,})\*(?!\*)", row)]
    assert len(quoted) > 20
    known = all_strings_in_code()
    pieces = [piece.strip(" .,") for text in quoted for piece in re.split(r"\(?\.\.\.\)?", text)]
    missing = [piece for piece in pieces if len(piece) > 8 and piece not in known]
    assert not missing
