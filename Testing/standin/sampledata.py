"""The module `SampleData`, as far as a module registers and loads its own samples (Modules/Scripted/SampleData)."""

from __future__ import annotations

import hashlib
import types
import urllib.request
from pathlib import Path
from typing import Any

categories: dict[str, str] = {}


class SampleDataSource:
    """One sample; the real one takes single values as well as lists, this one lists only."""

    def __init__(self, **facts: Any) -> None:
        count = len(facts["uris"])
        for name in ("checksums", "loadFiles", "nodeNames"):
            if facts[name] is None:
                facts[name] = [None] * count
        lists = ("uris", "fileNames", "nodeNames", "checksums", "loadFiles", "loadFileTypes")
        if any(len(facts[name]) != count for name in lists):
            raise ValueError("All fields of sample data source must have the same length")
        vars(self).update(facts)
        self.facts = facts


class SampleDataLogic:
    @staticmethod
    def registerCustomSampleDataCategory(category: str, title: str) -> None:
        categories[category] = title

    @staticmethod
    def registerCustomSampleDataSource(
        category: str = "Custom",
        sampleName: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        customDownloader: Any = None,
        thumbnailFileName: Any = None,
        loadFileTypes: Any = None,
        loadFiles: Any = None,
        loadFileProperties: Any = None,
        checksums: Any = None,
        loadFileType: Any = None,
    ) -> None:
        if loadFileType is not None and loadFileTypes is not None:
            raise ValueError("loadFileType and loadFileTypes cannot be specified at the same time")
        source = SampleDataSource(
            sampleName=sampleName,
            uris=uris,
            fileNames=fileNames,
            nodeNames=nodeNames,
            thumbnailFileName=thumbnailFileName,
            loadFileTypes=loadFileTypes or loadFileType,
            loadFiles=loadFiles,
            loadFileProperties=loadFileProperties or {},
            checksums=checksums,
            customDownloader=customDownloader,
        )
        known = _sources().setdefault(category, [])
        if source.facts not in [other.facts for other in known]:
            known.append(source)

    def downloadSamples(self, sampleName: str) -> list[Any]:
        found = [source for sources in _sources().values() for source in sources if source.sampleName == sampleName]
        return self.downloadFromSource(found[0]) if found else []

    def downloadFromSource(self, source: Any) -> list[Any]:
        import slicer

        folder = Path(slicer.mrmlScene.GetCacheManager().GetRemoteCacheDirectory())
        folder.mkdir(parents=True, exist_ok=True)
        nodes = []
        rows = zip(source.uris, source.fileNames, source.nodeNames, source.checksums, source.loadFileTypes, strict=True)
        for uri, name, node, checksum, kind in rows:
            path = folder / name
            if not path.is_file():
                urllib.request.urlretrieve(uri, path)
            if checksum is not None:
                algorithm, digest = checksum.split(":")
                if hashlib.new(algorithm.lower(), path.read_bytes()).hexdigest() != digest:
                    raise ValueError(f"Checksum of {path} is wrong")
            nodes.append(slicer.util.loadNodeFromFile(str(path), kind, {"name": node}))
        return nodes


def _sources() -> dict[str, list[Any]]:
    import slicer

    if not hasattr(slicer.modules, "sampleDataSources"):
        slicer.modules.sampleDataSources = {}
    return slicer.modules.sampleDataSources


def make_module() -> types.ModuleType:
    module = types.ModuleType("SampleData", __doc__)
    module.SampleDataLogic = SampleDataLogic  # type: ignore[attr-defined]
    module.SampleDataSource = SampleDataSource  # type: ignore[attr-defined]
    return module
