"""Set up and run, in one command: ``python dev.py demo`` or ``python dev.py test``.

Makes a virtual environment in ``.venv`` beside this file, installs DRDM into it, and runs. Needs Python 3.10 or newer
and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run(*arguments: str | Path) -> int:
    """Run the environment's Python and return its exit status."""
    return subprocess.run([str(PYTHON), *map(str, arguments)], cwd=ROOT, check=False).returncode


def set_up(extras: str) -> None:
    """Make the environment and install DRDM with ``extras``, unless that has been done for these very files."""
    state = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()).hexdigest()
    marker = ENVIRONMENT / f"drdm-{extras}.txt"
    if marker.is_file() and marker.read_text(encoding="utf-8") == state:
        return
    print(f"Setting up '{ENVIRONMENT}' ...", flush=True)
    try:
        venv.EnvBuilder(with_pip=True, clear=not PYTHON.is_file()).create(ENVIRONMENT)
    except subprocess.CalledProcessError:
        sys.exit("Python cannot make virtual environments here; on Debian and Ubuntu: apt-get install python3-venv")
    if run("-m", "pip", "install", "--quiet", "-c", "constraints.txt", "-e", f".[{extras}]") != 0:
        sys.exit("The installation failed; the lines above say why. Is there a network?")
    marker.write_text(state, encoding="utf-8")


def demo(arguments: list[str]) -> int:
    """``drdm demo``, in the folder drdm-demo unless told otherwise."""
    set_up("cli")
    return run("-m", "DRDMLib", "demo", *arguments)


def test(arguments: list[str]) -> int:
    """Style, types and every test."""
    set_up("test")
    if arguments:
        return run("-m", "pytest", *arguments)
    steps: list[list[str]] = [
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        ["-m", "mypy"],
        ["-m", "pytest"],
        # In processes of their own: there is one stand-in for Slicer's application, and its own tests unload modules.
        ["-m", "pytest", "Testing/panel"],
        ["-m", "pytest", "DRDMDeform/Testing"],
    ]
    failed = [step for step in steps if run(*step) != 0]
    for step in failed:
        print("FAILED: python " + " ".join(step), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit("DRDM needs Python 3.10 or newer.")
    commands = {"demo": demo, "test": test}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit("usage: python dev.py demo [options of 'drdm demo'] | test [options of pytest]")
    sys.exit(commands[sys.argv[1]](sys.argv[2:]))
