"""Find out what this computer and this Python can compute with, and test whether it works.

``python -m DRDMLib.probe`` prints two lines of JSON: first what is installed, and then whether PyTorch works. It needs
only Python. PyTorch is imported only for the second line. This must run in a process of its own, because a damaged
PyTorch can crash the process, and one that has been imported cannot be replaced.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import DRDMError
from .programs import find_program

# Folders of the PyTorch wheel. pip renames a folder that it cannot delete to "~orch" and leaves it there.
TORCH_FOLDERS = ("torch", "torchgen", "functorch")
_LEFTOVER = re.compile(r"^(torch(gen)?-.*\.(dist-info|egg-info)|~.*orch.*)$")
_NEEDED = ("safetensors", "platformdirs")


@dataclass(frozen=True)
class Card:
    """An NVIDIA GPU, as the driver's tool ``nvidia-smi`` describes it.

    Attributes:
        name: such as ``"NVIDIA GeForce RTX 3060"``.
        driver: version of the driver.
        capability: compute capability, such as ``"8.6"``; empty if the driver is too old to report it.
    """

    name: str
    driver: str
    capability: str = ""


def torch_version() -> str:
    """Return the version of the installed PyTorch without importing it; empty if there is none."""
    return _version("torch")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def site_folders() -> list[Path]:
    """List the folders in which this Python keeps its packages."""
    paths = sysconfig.get_paths()
    return [Path(path) for path in dict.fromkeys((paths["purelib"], paths["platlib"])) if Path(path).is_dir()]


def torch_leftovers(folders: list[Path]) -> list[Path]:
    """List everything that belongs to PyTorch in package folders, also the remains of an incomplete installation."""
    return [
        path
        for folder in folders
        for path in sorted(folder.iterdir())
        if path.name in TORCH_FOLDERS or _LEFTOVER.match(path.name)
    ]


def nvidia_cards() -> list[Card]:
    """List the NVIDIA GPUs of this computer; empty if there is none, or if its driver is missing."""
    tool = find_program("nvidia-smi")
    if tool is None:
        return []
    # An old driver does not know the last field.
    for fields in ("name,driver_version,compute_cap", "name,driver_version"):
        try:
            output = subprocess.run(
                [tool, f"--query-gpu={fields}", "--format=csv,noheader"],
                capture_output=True,
                timeout=30,
                check=True,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            ).stdout.decode("utf-8", "replace")
        except (OSError, subprocess.SubprocessError):
            continue
        rows = [[part.strip() for part in line.split(",")] for line in output.splitlines() if line.strip()]
        return [Card(*row) for row in rows if len(row) == fields.count(",") + 1]
    return []


def torch_wishes() -> list[tuple[str, str]]:
    """List (package, requirement) of every installed package that requires certain versions of PyTorch."""
    wishes = []
    for distribution in importlib.metadata.distributions():
        for line in distribution.requires or []:
            if re.match(r"torch\s*[(<>=!~]", line) and "extra ==" not in line:
                wishes.append((distribution.metadata["Name"] or "", line.split(";")[0].strip()))
    return sorted(set(wishes))


def missing_packages() -> list[str]:
    """Packages besides PyTorch that DRDM needs and that are not installed; imports none of them."""
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def installed() -> dict[str, Any]:
    """Describe what is installed, without importing it."""
    folders = site_folders()
    return {
        "system": platform.system(),
        "machine": platform.machine().lower(),
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "torch": torch_version(),
        "found": importlib.util.find_spec("torch") is not None,
        "leftovers": sorted({path.name for path in torch_leftovers(folders)}),
        "missing": missing_packages(),
        "cards": [asdict(card) for card in nvidia_cards()],
        "wishes": torch_wishes(),
        "free_gigabytes": round(min((shutil.disk_usage(f).free for f in folders), default=0) / 1e9, 2),
    }


def works() -> dict[str, Any]:
    """Import PyTorch, and test a small computation.

    Returns:
        Among others ``fault``: why PyTorch cannot be imported; ``cuda_fault``: why CUDA is not available although
        PyTorch was built with it; ``kernel_fault``: why a small computation on the GPU failed.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import torch

            from .device import kernel_fault

            cuda = torch.cuda.is_available()
    # A damaged PyTorch can raise anything: ImportError, OSError for a library, AttributeError, NameError ...
    except Exception as error:
        return {"fault": _fault(error)}
    driver = next((str(w.message) for w in caught if "driver" in str(w.message)), "")
    facts = {
        "torch": torch.__version__,
        "cuda_build": torch.version.cuda or "",
        "device": "cpu",
        "gpu": "",
        "cuda_fault": "" if cuda else driver.splitlines()[0] if driver else "",
        "kernel_fault": "",
        "numpy_bridge": _numpy_bridge(torch),
    }
    kind = "cuda" if cuda else "mps" if torch.backends.mps.is_available() else ""
    if kind:
        facts["gpu"] = torch.cuda.get_device_name(0) if cuda else "Apple GPU"
        facts["kernel_fault"] = kernel_fault(torch.device(kind))
        facts["device"] = "cpu" if facts["kernel_fault"] else kind
    return facts


def _numpy_bridge(torch: Any) -> bool:
    """Whether PyTorch can convert tensors to NumPy arrays; a build for NumPy 1 cannot do so with NumPy 2."""
    try:
        torch.zeros(1).numpy()
    except Exception:
        return False
    return True


def require_torch() -> None:
    """Check that the packages which every command imports can be used.

    Raises:
        DRDMError: PyTorch or another package is missing or damaged, or PyTorch was built for another NumPy.
    """
    missing = missing_packages()
    if importlib.util.find_spec("torch") is None:
        raise DRDMError("PyTorch is not installed; install it (pip install torch), in 3D Slicer in the section Setup.")
    if missing:
        names = " ".join(missing)
        raise DRDMError(f"Python packages are missing ({', '.join(missing)}); install them (pip install {names}).")
    repair = "install it again (pip install --force-reinstall torch), in 3D Slicer in the section Setup"
    try:
        import torch
        import torch.nn.functional

        with torch.inference_mode():
            torch.zeros(1).add_(1)
    # A damaged PyTorch can raise anything, see works().
    except Exception as error:
        raise DRDMError(f"PyTorch is installed but cannot be imported ({_fault(error)}); {repair}.") from error
    if not _numpy_bridge(torch):
        raise DRDMError(f"PyTorch {torch.__version__} does not work with NumPy {_version('numpy')}; {repair}.")


def _fault(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def main() -> None:
    """Print the two lines, in the form of a job's items for the panel in Slicer."""
    facts = installed()
    print(json.dumps({"event": "item", **facts}), flush=True)
    if facts["found"]:
        print(json.dumps({"event": "item", **facts, **works(), "examined": True}), flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
