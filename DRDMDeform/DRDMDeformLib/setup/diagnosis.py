"""Diagnose the PyTorch installation: pure functions from facts to a problem, in one sentence, and its remedy.

The facts are those that ``DRDMLib.probe`` reports from a separate process.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version
from slicer.i18n import tr as _

OLDEST_TORCH = "2.4"
# The last PyTorch for Intel Macs, and for Intel builds of Slicer on Apple silicon.
INTEL_MAC_TORCH = "2.2"
# Oldest drivers for CUDA 12 and for CUDA 13, from the release notes of the CUDA Toolkit.
DRIVERS = {"Linux": ("525.60.13", "580.65.06"), "Windows": ("528.33", "580.00")}
DRIVER_PAGE = "https://www.nvidia.com/drivers"
# Disk space for the download and the unpacked files, gigabytes.
GPU_GIGABYTES, CPU_GIGABYTES, PACKAGES_GIGABYTES = 9.0, 2.5, 0.2


class Condition(enum.Enum):
    """State of the installation."""

    READY = "ready"
    UNKNOWN = "not checked yet"
    MISSING = "no PyTorch"
    BROKEN = "PyTorch cannot be imported"
    TOO_OLD = "PyTorch is too old"
    PACKAGES = "other packages are missing"
    CPU_BUILD = "PyTorch for the CPU on a computer with an NVIDIA GPU"
    WRONG_BUILD = "this build does not run on the GPU"
    OTHER_NUMPY = "PyTorch was built for another NumPy"
    OLD_DRIVER = "the driver is too old for every build"


class Remedy(enum.Enum):
    """What the button in Setup does."""

    NOTHING = "nothing"
    INSTALL = "install PyTorch and the other packages"
    REPLACE = "remove PyTorch completely, then install it"
    PACKAGES = "install the other packages"
    DRIVER = "open the download page of the driver"


@dataclass(frozen=True)
class Diagnosis:
    """State of the installation and its remedy.

    Attributes:
        condition: state of the installation.
        problem: why nothing can be computed, in one sentence; empty if PyTorch can be used.
        advice: what could be improved.
        remedy: what the button does.
        label: text of the button.
        requirement: versions of PyTorch to install, such as ``">=2.4,<2.9"``.
        backend: build to install, such as ``"cu128"``; empty: the PyTorch extension chooses.
        gigabytes: disk space that the remedy needs.
    """

    condition: Condition
    problem: str = ""
    advice: str = ""
    remedy: Remedy = Remedy.NOTHING
    label: str = ""
    requirement: str = ""
    backend: str = ""
    gigabytes: float = 0.0


def diagnose(facts: Mapping[str, Any]) -> Diagnosis:
    """Find the first problem in the facts of ``DRDMLib.probe``."""
    torch = facts.get("torch", "")
    requirement, conflicting = torchRequirement(facts)
    backend = bestBackend(facts)
    size = GPU_GIGABYTES if backend else CPU_GIGABYTES

    def finding(condition: Condition, problem: str, remedy: Remedy, label: str, advice: str = "") -> Diagnosis:
        return Diagnosis(condition, problem, advice, remedy, label, requirement, backend, size)

    if not torch and not facts.get("found"):
        # Files of an interrupted installation have to be removed first.
        remedy = Remedy.REPLACE if facts.get("leftovers") else Remedy.INSTALL
        problem = _("PyTorch, which computes the deformations, is not installed.")
        return finding(Condition.MISSING, problem, remedy, _("Install PyTorch"))
    if facts.get("fault") or not facts.get("found"):
        fault = facts.get("fault") or _("its files are missing")
        problem = _("PyTorch is installed but cannot be imported ({fault}).").format(fault=fault)
        return finding(Condition.BROKEN, problem, Remedy.REPLACE, _("Repair PyTorch"))
    if torch and _older(torch, oldestTorch(facts)):
        problem = _("PyTorch {version} is too old; DRDM needs {oldest} or newer.").format(
            version=torch, oldest=oldestTorch(facts)
        )
        if conflicting:
            problem += " " + _("Update afterwards, since they require the old version: {packages}.").format(
                packages=", ".join(conflicting)
            )
        return finding(Condition.TOO_OLD, problem, Remedy.REPLACE, _("Update PyTorch"))
    if facts.get("missing"):
        problem = _("These Python packages are missing: {packages}.").format(packages=", ".join(facts["missing"]))
        label = _("Install packages")
        return Diagnosis(Condition.PACKAGES, problem, "", Remedy.PACKAGES, label, gigabytes=PACKAGES_GIGABYTES)
    if not facts.get("examined"):
        return Diagnosis(Condition.UNKNOWN)
    if not facts.get("numpy_bridge", True):
        numpy = facts.get("numpy", "")
        if isIntelMac(facts):
            problem = _("No PyTorch for Intel Macs works with NumPy {numpy}, which this Slicer has.")
            return Diagnosis(Condition.OTHER_NUMPY, problem.format(numpy=numpy))
        problem = _("PyTorch {version} does not work with NumPy {numpy}, which this Slicer has.")
        problem = problem.format(version=torch, numpy=numpy)
        return finding(Condition.OTHER_NUMPY, problem, Remedy.REPLACE, _("Update PyTorch"))
    return _gpuDiagnosis(facts, backend, finding)


def _gpuDiagnosis(facts: Mapping[str, Any], backend: str, finding: Any) -> Diagnosis:
    cards = facts.get("cards") or []
    if facts.get("device") != "cpu" or not (cards or facts.get("kernel_fault")):
        return Diagnosis(Condition.READY)
    if not cards:
        advice = _("This PyTorch does not run on the GPU ({fault}); the CPU is used.")
        return Diagnosis(Condition.WRONG_BUILD, advice=advice.format(fault=facts["kernel_fault"]))
    name, driver = cards[0]["name"], cards[0]["driver"]
    if not backend:
        advice = _("The driver {driver} of the {card} is too old for every current PyTorch; the CPU is used.")
        return Diagnosis(
            Condition.OLD_DRIVER,
            advice=advice.format(driver=driver, card=name),
            remedy=Remedy.DRIVER,
            label=_("Get a newer driver"),
        )
    if not facts.get("cuda_build"):
        advice = _("The {card} is not used, since this PyTorch only runs on the CPU.").format(card=name)
        return finding(Condition.CPU_BUILD, "", Remedy.REPLACE, _("Install PyTorch for the GPU"), advice)
    fault = facts.get("kernel_fault") or facts.get("cuda_fault") or _("reason unknown")
    advice = _("This PyTorch does not support the {card} or its driver ({fault}); the CPU is used.")
    advice = advice.format(card=name, fault=fault)
    return finding(Condition.WRONG_BUILD, "", Remedy.REPLACE, _("Install PyTorch for this GPU"), advice)


def oldestTorch(facts: Mapping[str, Any]) -> str:
    """The oldest PyTorch that DRDM can use on this computer."""
    return INTEL_MAC_TORCH if isIntelMac(facts) else OLDEST_TORCH


def isIntelMac(facts: Mapping[str, Any]) -> bool:
    """Whether this is an Intel Mac, for which there is no current PyTorch."""
    return facts.get("system") == "Darwin" and facts.get("machine") == "x86_64"


def bestBackend(facts: Mapping[str, Any]) -> str:
    """The build of PyTorch for the first NVIDIA GPU and its driver; empty without a GPU or a suitable build.

    Builds for CUDA 13 support GPUs with compute capability 7.5 (Turing) or higher, those for CUDA 12.8 also 10 and 12
    (Blackwell), and those for CUDA 12.6 support 5.0 to 9.0 (Maxwell to Hopper).
    """
    cards = facts.get("cards") or []
    drivers = DRIVERS.get(facts.get("system", ""))
    if not cards or drivers is None or _older(cards[0]["driver"], drivers[0]):
        return ""
    capability = cards[0].get("capability") or "8.0"
    if not _older(cards[0]["driver"], drivers[1]) and not _older(capability, "7.5"):
        return "cu130"
    return "cu126" if _older(capability, "10.0") else "cu128"


def torchRequirement(facts: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Versions of PyTorch that DRDM and the other packages accept, and the packages that conflict with them."""
    chosen = SpecifierSet(f">={oldestTorch(facts)}")
    conflicting = []
    for package, text in facts.get("wishes") or []:
        if package.lower() == "drdm":
            continue
        try:
            specifier = Requirement(text).specifier
        except InvalidRequirement:
            continue
        if _canExist(chosen & specifier):
            chosen &= specifier
        else:
            conflicting.append(f"{package} ({text})")
    return ",".join(sorted(str(s) for s in chosen)), conflicting


def _canExist(wanted: SpecifierSet) -> bool:
    """Whether a version may fulfill the specifiers: PyTorch has 2.0.0, 2.0.1, 2.1.0, ..."""
    return any(wanted.contains(f"2.{minor}.{patch}") for minor in range(60) for patch in range(3))


def _older(version: str, than: str) -> bool:
    try:
        return Version(version) < Version(than)
    except InvalidVersion:
        return False


def explainFailure(output: str, diagnosis: Diagnosis, pinned: Iterable[str] = ()) -> str:
    """Explain in one sentence why an installation failed.

    Args:
        output: all that the installation has printed.
        diagnosis: the diagnosis that led to it.
        pinned: packages that require certain versions of PyTorch.
    """
    # The most specific patterns come first: without a network, pip also reports missing versions.
    failures = (
        (
            r"No space left on device|Errno 28|WinError 112|not enough space on the disk|[Dd]isk quota exceeded",
            _("The disk is full; free about {gigabytes:.0f} GB on Slicer's disk and press the button again."),
        ),
        (
            r"ProxyError|[Cc]annot connect to proxy|Tunnel connection failed|407 Proxy|Proxy Authentication",
            _(
                "The proxy blocked the download; set the environment variable HTTPS_PROXY to "
                "http://user:password@proxy:port, restart Slicer and press the button again."
            ),
        ),
        (
            r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError",
            _(
                "The certificate of the download server was not accepted, often due to a proxy; set the environment "
                "variable PIP_CERT to your institution's certificate file and restart Slicer."
            ),
        ),
        (
            r"NewConnectionError|Failed to establish a new connection|getaddrinfo failed|Name or service not known|"
            r"[Nn]etwork is unreachable|name resolution|ConnectTimeout|timed out|ConnectionResetError|"
            r"Connection aborted|Connection refused|Connection broken|IncompleteRead",
            _("The download server cannot be reached; check the network and press the button again."),
        ),
        (
            r"WinError 32|used by another process|WinError 5\b|Access is denied|Permission denied|Errno 13",
            _(
                "Slicer's folder cannot be written to; close other Slicer windows, or install Slicer in a folder that "
                "you may write to, and press the button again."
            ),
        ),
        (
            r"ResolutionImpossible|conflicting dependencies",
            _(
                "Other packages require another version ({pinned}); update or remove their extension, then press the "
                "button again."
            ),
        ),
        (
            r"BadZipFile|[Ii]nvalid wheel|is invalid\.|DO NOT MATCH THE HASHES|File is not a zip file",
            _("The downloaded file is damaged; press the button again."),
        ),
        (
            r"No matching distribution|Could not find a version",
            _(
                "No PyTorch for this computer was found (torch {requirement}); check the network, update Slicer and "
                "its extension PyTorch, then press the button again."
            ),
        ),
    )
    for pattern, sentence in failures:
        if re.search(pattern, output):
            return sentence.format(
                gigabytes=max(1.0, diagnosis.gigabytes),
                requirement=diagnosis.requirement,
                pinned=", ".join(pinned) or _("see the Python console"),
            )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    reason = lines[-1][:200] if lines else _("reason unknown")
    return _("The installation failed ({reason}); see the Python console for details.").format(reason=reason)
