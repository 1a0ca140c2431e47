"""The module `SampleData`, as far as a module registers its own samples (Modules/Scripted/SampleData)."""

from __future__ import annotations

import types
from typing import Any

registered: list[dict[str, Any]] = []
categories: dict[str, str] = {}


def make_module() -> types.ModuleType:
    module = types.ModuleType("SampleData", __doc__)

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
            registered.append(dict(locals()))

    module.SampleDataLogic = SampleDataLogic  # type: ignore[attr-defined]
    return module
