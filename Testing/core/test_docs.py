"""What the pages say can be done: their commands and snippets are run, their links and pictures are there.

Commands run as they are written, on small images; a few options are added so that they are quick (``QUICK``). What
needs a network, a cluster or another program is only checked for what can be checked here.
"""

import doctest
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from support import smooth_image

from DRDMLib.cli import build_parser, main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
# Added to a command so that it takes a second; none of them changes what it is about.
QUICK = {
    "demo": ["--steps", "1", "-o", "drdm-demo"],
    "deform": ["--steps", "1", "--count", "1"],
    "augment": ["--steps", "1", "--copies", "1"],
    "synthesize": ["--steps", "1", "--copies", "1"],
    "train": ["--size", "16", "--iterations", "2", "--batch", "2", "--width", "8", "--depth", "1"],
}
PROGRAMS = ("drdm", "python", "python3", "pip", "torchrun", "srun", "sbatch", "cmake", "nnUNetv2_train")


def fenced(text, *kinds):
    """Contents of the fenced blocks of these kinds; those in a list are indented."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, kind, body in found if kind in kinds]


def commands(text):
    """Lines to be typed: of shell blocks, and of blocks that are indented."""
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
    """A folder with what the pages speak of."""
    folder = tmp_path_factory.mktemp("pages é")
    scan = smooth_image((22, 20, 18), (2.0, 2.0, 2.5))
    organs = sitk.Cast(scan > 150, sitk.sitkUInt8)
    sitk.WriteImage(scan, str(folder / "scan.nii.gz"))
    sitk.WriteImage(organs, str(folder / "organs.nii.gz"))
    for name in ("scans", "Dataset001_Heart"):
        for kind, image in (("images", scan), ("labels", organs)):
            (folder / name / kind).mkdir(parents=True)
            for case in ("one", "two"):
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
    """Run a line of a page, or check of it what can be checked here."""
    words = shlex.split(line)
    program = words[0]
    if program == "drdm":
        if words[1:3] == ["models", "fetch"]:
            build_parser().parse_args(words[1:])
        else:
            assert run_drdm(words[1:], folder) == 0, line
    elif program in ("python", "python3") and words[1] == "-m":
        assert importlib.util.find_spec(words[2]) is not None, line
        run([sys.executable, *words[1:]])
    elif program in ("python", "python3"):
        script = ROOT / words[1]
        assert script.is_file(), line
        if words[1] == "dev.py":
            assert words[2] in ("demo", "test"), line
        elif words[1].startswith("docs/examples/"):
            run([sys.executable, *words[1:], "--steps", "2", "--strangers", "1"])
        elif words[1].startswith("docs/"):
            run([sys.executable, str(script), "--check", *words[2:]])
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
    return main([*words, *QUICK.get(words[0], [])])


def run(arguments):
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(arguments, env=environment, capture_output=True, encoding="utf-8", timeout=900)
    assert done.returncode == 0, " ".join(map(str, arguments)) + "\n" + done.stdout + done.stderr
    return done.stdout


def in_slicer(snippet):
    return bool(re.search(r"\b(slicer|logic|DRDMDeformLib)\b", snippet))


IN_SLICER = """
import standin; standin.install()
standin.load_module({module!r}); standin.finish_startup()
import SampleData, slicer
slicer.util.selectModule("DRDMDeform")
volume, segmentation = SampleData.SampleDataLogic().downloadSamples("DRDMPhantom")
volume.SetName("Phantom"); segmentation.SetName("Phantom segmentation")
"""


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_can_be_done(name, there):
    """Commands and Python in the order of the page; each goes on where the last has stopped."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for line in inline(text):
        command, *options = shlex.split(line)[1:]
        known = subcommands()[command]._option_string_actions
        assert {option for option in options if option.startswith("-")} <= set(known), line
    steps = re.compile(r"^ *```(?:python|sh)\n.*?^ *```|^    (?:drdm|python3?|pip|torchrun|srun) [^\n]*$", re.M | re.S)
    namespace = {"__name__": "__page__"}
    for step in (found.group(0) for found in steps.finditer(text)):
        python = fenced(step, "python")
        if python and not in_slicer(python[0]):
            exec(compile(python[0], name, "exec"), namespace)
        elif not python:
            for line in commands(step):
                run_command(line, there)


@pytest.mark.parametrize("name", NAMES)
def test_snippets_for_slicer_run(name, there):
    snippets = [block for block in fenced((ROOT / name).read_text(encoding="utf-8"), "python") if in_slicer(block)]
    if not snippets:
        return
    pytest.importorskip("slicer")
    code = IN_SLICER.format(module=str(ROOT / "DRDMDeform" / "DRDMDeform.py")) + "\n".join(snippets)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT / "Testing"), str(ROOT)]))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", timeout=900
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


@pytest.mark.parametrize("name", NAMES)
def test_links_and_pictures_are_there(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{name}: {target}"


def test_the_reference_is_up_to_date():
    run([sys.executable, str(ROOT / "docs" / "make_api.py"), "--check"])


def test_files_that_are_named_are_there():
    """Paths of the project in back-quotes, also those under DRDMLib that are named after a first full one."""
    for page in PAGES:
        for path in re.findall(
            r"`((?:DRDMLib|DRDMDeform|Testing|Resources|docs)/[\w./-]+)`", page.read_text(encoding="utf-8")
        ):
            assert (ROOT / path).exists() or "NAME" in path, f"{page.name}: {path}"
