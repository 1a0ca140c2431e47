"""The module `SampleData`, as far as a module registers and loads its own samples (Modules/Scripted/SampleData)."""

from __future__ import annotations

import hashlib
import types
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer


@dataclass
class SampleDataSource:
    """One sample; the real one takes single values as well as lists, this one lists only."""

    sampleName: str
    uris: list[str]
    fileNames: list[str]
    nodeNames: list[str]
    checksums: list[str]
    loadFileTypes: list[str]
    thumbnailFileName: str

    def __post_init__(self) -> None:
        lists = (self.fileNames, self.nodeNames, self.checksums, self.loadFileTypes)
        if any(len(entries) != len(self.uris) for entries in lists):
            raise ValueError("All fields of sample data source must have the same length")


class SampleDataLogic:
    @staticmethod
    def registerCustomSampleDataSource(category: str, **facts: Any) -> None:
        sources = vars(slicer.modules).setdefault("sampleDataSources", {}).setdefault(category, [])
        source = SampleDataSource(**facts)
        if source not in sources:
            sources.append(source)

    def downloadSamples(self, sampleName: str) -> list[Any]:
        sources = [source for sources in slicer.modules.sampleDataSources.values() for source in sources]
        source = next(source for source in sources if source.sampleName == sampleName)
        folder = Path(slicer.mrmlScene.GetCacheManager().GetRemoteCacheDirectory())
        nodes = []
        rows = zip(source.uris, source.fileNames, source.nodeNames, source.checksums, source.loadFileTypes, strict=True)
        for uri, name, node, checksum, kind in rows:
            path = folder / name
            if not path.is_file():
                urllib.request.urlretrieve(uri, path)
            algorithm, digest = checksum.split(":")
            if hashlib.new(algorithm.lower(), path.read_bytes()).hexdigest() != digest:
                raise ValueError(f"Checksum of {path} is wrong")
            nodes.append(slicer.util.loadNodeFromFile(str(path), kind, {"name": node}))
        return nodes


def make_module() -> types.ModuleType:
    module = types.ModuleType("SampleData", __doc__)
    module.SampleDataLogic = SampleDataLogic  # type: ignore[attr-defined]
    return module
