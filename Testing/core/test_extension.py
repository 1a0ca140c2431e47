"""What the Extensions Index looks at, as far as it can be seen without the public repository."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
ENTRY = json.loads((ROOT / "DRDM.json").read_text(encoding="utf-8"))
# Keys of the schema that the entry names, version 1.0.1; no others are allowed.
KEYS = {"$schema", "category", "scm_url", "scm_revision", "scm_type", "build_dependencies", "build_subdirectory"}
KEYS |= {"enabled", "tier"}


def meta(name):
    return re.search(rf'set\(EXTENSION_{name} "?([^")]*)"?\)', CMAKE).group(1)


def test_the_entry_keeps_to_the_schema():
    assert {"$schema", "category", "scm_url"} <= set(ENTRY) <= KEYS
    assert ENTRY["$schema"].split("#")[0].endswith("slicer-extension-catalog-entry-schema-v1.0.1.json")
    assert ENTRY["scm_url"].startswith("https://") and ENTRY["tier"] in (1, 2, 3, 4, 5)
    assert all(isinstance(name, str) for name in ENTRY["build_dependencies"])
    assert b"\r" not in (ROOT / "DRDM.json").read_bytes()


def test_names_are_as_the_index_wants_them():
    """The extension's name does not start with Slicer, the repository's does; the project has the entry's name."""
    assert re.search(r"project\s*\(\s*([^\s)]+)", CMAKE).group(1) == "DRDM"
    assert Path(ENTRY["scm_url"]).name.startswith("Slicer")


def test_the_entry_and_the_project_say_the_same():
    assert ENTRY["category"] == meta("CATEGORY")
    assert ENTRY["build_dependencies"] == meta("DEPENDS").split() == ["PyTorch"]
    assert str(ENTRY["tier"]) == meta("TIER")
    assert ENTRY["scm_url"].removesuffix(".git") == meta("HOMEPAGE")


def test_one_or_two_sentences_say_what_it_is_for():
    sentences = [s for s in re.split(r"[.!?](?:\s|$)", meta("DESCRIPTION")) if s]
    assert 1 <= len(sentences) <= 2


@pytest.mark.parametrize("url", [meta("ICONURL"), *meta("SCREENSHOTURLS").split()])
def test_pictures_are_raw_files_of_this_repository(url):
    base = meta("HOMEPAGE").replace("github.com", "raw.githubusercontent.com") + f"/{ENTRY['scm_revision']}/"
    assert url.startswith(base)
    picture = ROOT / url.removeprefix(base)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_icon_is_128_pixels_square():
    header = (ROOT / "DRDMDeform" / "Resources" / "Icons" / "DRDMDeform.png").read_bytes()[16:24]
    assert (int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")) == (128, 128)


def test_the_licence_is_there_and_named():
    text = (ROOT / "LICENSE.txt").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0" in text
    assert "Apache-2.0" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_policy_that_removes_findpythoninterp_stays_off():
    """CTK's macro for scripts looks for Python in the way that CMake 3.27 removes (policy CMP0148)."""
    newest = re.search(r"cmake_minimum_required\(VERSION [\d.]+\.\.\.([\d.]+)", CMAKE).group(1)
    assert tuple(map(int, newest.split("."))) < (3, 27)


def test_what_is_shipped_is_small_enough():
    """The index refuses repositories above 100 MB."""
    folders = ("DRDMLib", "DRDMDeform", "Resources", "Testing", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60e6
