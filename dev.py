"""Set up and run, in one command: ``python dev.py demo``, ``python dev.py test`` or ``python dev.py docs``.

Makes a virtual environment in ``.venv`` beside this file, installs DRDM into it, and runs. Needs Python 3.10 or newer
and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# Their tests are shared among as many processes as there are processors.
SHARED = ("Testing/core", "DRDMDeform/Testing")
USAGE = """usage: python dev.py COMMAND

  demo [OPTIONS]    run 'drdm demo' with these options
  test              check style and types, run the tests
  test --all        the same with the long forms of a few tests, which have short forms beside them
  test --quick      the same without the tests that are slow or need Slicer's packages
  test OPTIONS      run pytest with these options
  docs [FOLDER]     build the reference of the Python interface, by default in docs/reference"""


def run(*arguments: str | Path) -> int:
    """Run the environment's Python and return its exit status."""
    return subprocess.run([str(PYTHON), *map(str, arguments)], cwd=ROOT, check=False).returncode


def run_checks(steps: list[list[str]]) -> int:
    """Run several commands, two at a time, and print the output of each when it ends; return 1 if one failed."""

    def check(step: list[str]) -> bool:
        print(f"Running python {' '.join(step)} ...", flush=True)
        done = subprocess.run(
            [str(PYTHON), *step],
            cwd=ROOT,
            env=dict(os.environ, OMP_NUM_THREADS="1", PYTHONUTF8="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        print(
            f"{done.stdout}\nEnd of python {' '.join(step)}: {'ok' if done.returncode == 0 else 'FAILED'}\n", flush=True
        )
        return done.returncode == 0

    with ThreadPoolExecutor(2) as two:
        passed = list(two.map(check, steps))
    for step in (step for step, good in zip(steps, passed, strict=True) if not good):
        print("FAILED: python " + " ".join(step), file=sys.stderr)
    return 0 if all(passed) else 1


def set_up(extras: str) -> None:
    """Make the environment and install DRDM with ``extras``, unless this was done for the present pyproject.toml."""
    state = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()).hexdigest()
    marker = ENVIRONMENT / f"drdm-{extras}.txt"
    if marker.is_file() and marker.read_text(encoding="utf-8") == state:
        return
    print(f"Setting up '{ENVIRONMENT}' ...", flush=True)
    try:
        venv.EnvBuilder(with_pip=True, clear=not PYTHON.is_file()).create(ENVIRONMENT)
    except subprocess.CalledProcessError:
        sys.exit("Python cannot make virtual environments here; on Debian and Ubuntu: apt-get install python3-venv")
    # pip would compile all packages in one process, which takes a minute.
    install = ["--quiet", "--no-compile", "-c", "constraints.txt", "-e", f".[{extras}]"]
    if run("-m", "pip", "install", *install) != 0:
        sys.exit("The installation failed; the lines above say why. Is there a network?")
    # Some packages contain files for other versions of Python, which cannot be compiled.
    run("-m", "compileall", "-qq", "-j", "0", ENVIRONMENT / ("Lib" if os.name == "nt" else "lib"))
    marker.write_text(state, encoding="utf-8")


def demo(arguments: list[str]) -> int:
    """Run ``drdm demo``, in the folder drdm-demo if no other is named."""
    set_up("cli")
    return run("-m", "DRDMLib", "demo", *arguments)


def test(arguments: list[str]) -> int:
    """Check style and types and run the tests, or run pytest alone with ``arguments``."""
    quick, everything = arguments == ["--quick"], arguments == ["--all"]
    set_up("test-core" if quick else "test")
    if arguments and not quick and not everything:
        return run("-m", "pytest", *arguments)
    # The tests of the panel and of the stand-in for Slicer's application need processes of their own: a process can
    # have one application, and the stand-in's own tests unload modules.
    folders = ["Testing/core"] if quick else ["Testing/panel", "Testing/mrml", "Testing/core", "DRDMDeform/Testing"]
    marks = [] if everything else ["-m", "not long and not slow and not slicer and not gpu" if quick else "not long"]
    # The tests of these folders take most of the time, and do not depend on each other.
    shared = ["-n", str(min(os.cpu_count() or 1, 8)), "--dist", "worksteal"]
    steps = [
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        ["-m", "mypy"],
        # Those that use all processors come last, so that no processor waits for another at the end.
        *(["-m", "pytest", folder, *marks, *(shared if folder in SHARED else [])] for folder in folders),
    ]
    status = run_checks(steps)
    if not everything:
        print(f"{long_forms()} long forms of tests were left out; 'python dev.py test --all' runs them, too.")
    return status


def long_forms() -> int:
    """Count the long forms of tests by their marks in the source."""
    files = [path for folder in ("Testing", "DRDMDeform/Testing") for path in (ROOT / folder).rglob("*.py")]
    return sum(path.read_text(encoding="utf-8").count("pytest.mark.long") for path in files)


def docs(arguments: list[str]) -> int:
    """Build the reference."""
    set_up("docs")
    return run(ROOT / "docs" / "build_reference.py", *map(os.path.abspath, arguments))


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit("DRDM needs Python 3.10 or newer.")
    commands = {"demo": demo, "test": test, "docs": docs}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(USAGE)
    sys.exit(commands[sys.argv[1]](sys.argv[2:]))
