"""From what a computer has to what is wrong with it: pure functions, one sentence each, and what puts it right.

The facts are those of ``DRDMLib.probe``, found out in a process of its own.
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
# The last PyTorch for Intel Macs, and for the Slicer that runs on Apple silicon as if it were one.
INTEL_MAC_TORCH = "2.2"
# Oldest driver for CUDA 12 and for CUDA 13, by the release notes of the CUDA Toolkit.
DRIVERS = {"Linux": ("525.60.13", "580.65.06"), "Windows": ("528.33", "580.00")}
DRIVER_PAGE = "https://www.nvidia.com/drivers"
# Room for the download and for what is unpacked, gigabytes.
GPU_GIGABYTES, CPU_GIGABYTES, PACKAGES_GIGABYTES = 9.0, 2.5, 0.2


class Condition(enum.Enum):
    """What was found."""

    READY = "ready"
    UNKNOWN = "not examined yet"
    MISSING = "no PyTorch"
    BROKEN = "PyTorch does not import"
    TOO_OLD = "PyTorch is too old"
    PACKAGES = "other packages are missing"
    CPU_BUILD = "PyTorch for the CPU beside an NVIDIA GPU"
    WRONG_BUILD = "the GPU does not run this build"
    OTHER_NUMPY = "PyTorch was built for another NumPy"
    OLD_DRIVER = "the driver is too old for any build"


class Remedy(enum.Enum):
    """What the button does."""

    NOTHING = "nothing"
    INSTALL = "install PyTorch and the rest"
    REPLACE = "remove every trace of PyTorch, then install it"
    PACKAGES = "install the other packages"
    DRIVER = "open the page with the driver"


@dataclass(frozen=True)
class Diagnosis:
    """One finding.

    Attributes:
        problem: why nothing can be computed; empty if something can.
        advice: what could be better.
        label: of the button.
        requirement: versions of PyTorch to install, such as ``">=2.4,<2.9"``.
        backend: build to install, such as ``"cu128"``; empty: the PyTorch extension chooses.
        gigabytes: room that the remedy takes.
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
    """What the facts of ``DRDMLib.probe`` mean."""
    torch = facts.get("torch", "")
    requirement, conflicting = torchRequirement(facts)
    backend = bestBackend(facts)
    size = GPU_GIGABYTES if backend else CPU_GIGABYTES

    def finding(condition: Condition, problem: str, remedy: Remedy, label: str, advice: str = "") -> Diagnosis:
        return Diagnosis(condition, problem, advice, remedy, label, requirement, backend, size)

    if not torch and not facts.get("found"):
        # The rest of an interrupted installation would only be in the way.
        remedy = Remedy.REPLACE if facts.get("leftovers") else Remedy.INSTALL
        said = _("PyTorch, which computes the deformations, is not installed yet.")
        return finding(Condition.MISSING, said, remedy, _("Install PyTorch"))
    if facts.get("fault") or not facts.get("found"):
        fault = facts.get("fault") or _("its files are missing")
        said = _("PyTorch is installed but does not start ({fault}).").format(fault=fault)
        return finding(Condition.BROKEN, said, Remedy.REPLACE, _("Repair PyTorch"))
    if torch and _older(torch, oldestTorch(facts)):
        said = _("PyTorch {version} is too old; DRDM needs {oldest} or newer.").format(
            version=torch, oldest=oldestTorch(facts)
        )
        if conflicting:
            said += " " + _("{packages} asked for the old one and may need an update afterwards.").format(
                packages=", ".join(conflicting)
            )
        return finding(Condition.TOO_OLD, said, Remedy.REPLACE, _("Update PyTorch"))
    if facts.get("missing"):
        said = _("Still missing: {packages}.").format(packages=", ".join(facts["missing"]))
        return Diagnosis(
            Condition.PACKAGES, said, "", Remedy.PACKAGES, _("Install the rest"), gigabytes=PACKAGES_GIGABYTES
        )
    if not facts.get("examined"):
        return Diagnosis(Condition.UNKNOWN)
    if not facts.get("numpy_bridge", True):
        numpy = facts.get("numpy", "")
        if isIntelMac(facts):
            said = _("There is no PyTorch for Intel Macs that works with NumPy {numpy}, which this Slicer has.")
            return Diagnosis(Condition.OTHER_NUMPY, said.format(numpy=numpy))
        said = _("PyTorch {version} does not work with NumPy {numpy}, which this Slicer has.")
        said = said.format(version=torch, numpy=numpy)
        return finding(Condition.OTHER_NUMPY, said, Remedy.REPLACE, _("Update PyTorch"))
    return _gpuDiagnosis(facts, backend, finding)


def _gpuDiagnosis(facts: Mapping[str, Any], backend: str, finding: Any) -> Diagnosis:
    cards = facts.get("cards") or []
    if facts.get("device") != "cpu" or not (cards or facts.get("kernel_fault")):
        return Diagnosis(Condition.READY)
    if not cards:
        said = _("The GPU does not run this PyTorch ({fault}); the processor is used.")
        return Diagnosis(Condition.WRONG_BUILD, advice=said.format(fault=facts["kernel_fault"]))
    name, driver = cards[0]["name"], cards[0]["driver"]
    if not backend:
        said = _("The driver {driver} of the {card} is too old for any current PyTorch; the processor is used.")
        return Diagnosis(
            Condition.OLD_DRIVER,
            advice=said.format(driver=driver, card=name),
            remedy=Remedy.DRIVER,
            label=_("Get a newer driver"),
        )
    if not facts.get("cuda_build"):
        said = _("The {card} is not used: this PyTorch was built for the processor alone.").format(card=name)
        return finding(Condition.CPU_BUILD, "", Remedy.REPLACE, _("Install PyTorch for the GPU"), said)
    fault = facts.get("kernel_fault") or facts.get("cuda_fault") or _("it does not say why")
    said = _("This PyTorch was built for other cards or drivers than the {card} ({fault}); the processor is used.")
    said = said.format(card=name, fault=fault)
    return finding(Condition.WRONG_BUILD, "", Remedy.REPLACE, _("Install PyTorch for this GPU"), said)


def oldestTorch(facts: Mapping[str, Any]) -> str:
    """The oldest PyTorch that will do on this computer."""
    return INTEL_MAC_TORCH if isIntelMac(facts) else OLDEST_TORCH


def isIntelMac(facts: Mapping[str, Any]) -> bool:
    """Whether it is a Mac for which PyTorch is made no longer."""
    return facts.get("system") == "Darwin" and facts.get("machine") == "x86_64"


def bestBackend(facts: Mapping[str, Any]) -> str:
    """The build of PyTorch for the first NVIDIA GPU and its driver; empty without one, or if there is none for it.

    Builds for CUDA 13 run on cards from Turing (7.5) on, those for CUDA 12.8 on Blackwell (10 and 12) too, those for
    12.6 on Maxwell to Hopper (5.0 to 9.0).
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
    """Versions of PyTorch that suit us and the other packages, and the packages that cannot be suited."""
    chosen = SpecifierSet(f">={oldestTorch(facts)}")
    conflicting = []
    for package, text in facts.get("wishes") or []:
        if package.lower() == "drdm":
            continue
        try:
            wish = Requirement(text).specifier
        except InvalidRequirement:
            continue
        if _possible(chosen & wish):
            chosen &= wish
        else:
            conflicting.append(f"{package} ({text})")
    return ",".join(sorted(str(s) for s in chosen)), conflicting


def _possible(wanted: SpecifierSet) -> bool:
    """Whether there may be such a version: PyTorch counts 2.0.0, 2.0.1, 2.1.0, ..."""
    return any(wanted.contains(f"2.{minor}.{patch}") for minor in range(60) for patch in range(3))


def _older(version: str, than: str) -> bool:
    try:
        return Version(version) < Version(than)
    except InvalidVersion:
        return False


def explainFailure(said: str, diagnosis: Diagnosis, pinned: Iterable[str] = ()) -> str:
    """One sentence on why an installation failed, from all that it wrote."""
    # In the order of how much each says: without a network pip writes of missing versions as well.
    failures = (
        (
            r"No space left on device|Errno 28|WinError 112|not enough space on the disk|[Dd]isk quota exceeded",
            _("The disk is full; free about {gigabytes:.0f} GB on Slicer's disk and press the button again."),
        ),
        (
            r"ProxyError|[Cc]annot connect to proxy|Tunnel connection failed|407 Proxy|Proxy Authentication",
            _(
                "The proxy did not let the download through; set the environment variable HTTPS_PROXY to "
                "http://user:password@proxy:port, restart Slicer and press the button again."
            ),
        ),
        (
            r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError",
            _(
                "The certificate of the download server was not accepted, as happens behind an inspecting proxy; set "
                "the environment variable PIP_CERT to your institution's certificate file and restart Slicer."
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
                "Slicer's folder cannot be written to; close other Slicer windows, or install Slicer in a folder of "
                "your own, and press the button again."
            ),
        ),
        (
            r"ResolutionImpossible|conflicting dependencies",
            _(
                "Other packages ask for another version ({pinned}); update or remove the extension they belong to, "
                "then press the button again."
            ),
        ),
        (
            r"BadZipFile|[Ii]nvalid wheel|is invalid\.|DO NOT MATCH THE HASHES|File is not a zip file",
            _("The download was damaged on its way; press the button again."),
        ),
        (
            r"No matching distribution|Could not find a version",
            _(
                "No PyTorch was found that suits this computer (wanted: torch {requirement}); check the network, "
                "update Slicer and its extension PyTorch, then press the button again."
            ),
        ),
    )
    for pattern, sentence in failures:
        if re.search(pattern, said):
            return sentence.format(
                gigabytes=max(1.0, diagnosis.gigabytes),
                requirement=diagnosis.requirement,
                pinned=", ".join(pinned) or _("see the Python console"),
            )
    last = [line.strip() for line in said.splitlines() if line.strip()]
    reason = last[-1][:200] if last else _("it did not say why")
    return _("The installation did not succeed ({reason}); the Python console says more.").format(reason=reason)
