"""The rules of the Extensions Index that can be checked without the public repository, and the project's own files."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from DRDMLib import __version__

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
    required = CMAKE.index("cmake_minimum_required(VERSION 3.28.0...3.28.0 FATAL_ERROR)")
    assert required < CMAKE.index("cmake_policy(SET CMP0148 OLD)") < CMAKE.index("find_package(")


def test_the_module_says_the_same_as_the_extension():
    pytest.importorskip("slicer")
    code = """
import json, standin
standin.install()
module = standin.load_module("DRDMDeform/DRDMDeform.py")
print(json.dumps([module.categories, module.contributors, module.helpText]))
"""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "Testing")]))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    categories, contributors, help_text = json.loads(done.stdout)
    assert categories == [meta("CATEGORY")] == [ENTRY["category"]]
    assert ", ".join(contributors) == contributors_of_the_extension()
    assert f'<a href="{meta("HOMEPAGE")}">' in help_text


def contributors_of_the_extension():
    found = re.search(r'set\(EXTENSION_CONTRIBUTORS "([^"]*)"\)', CMAKE).group(1)
    assert re.fullmatch(r"[^()]+ \([^()]+\)(, [^()]+ \([^()]+\))*", found), "Firstname Lastname (Organization), ..."
    return found


def test_the_sample_has_a_thumbnail_of_the_usual_size():
    """As those of Slicer's own samples, 288 x 261."""
    header = (ROOT / "DRDMDeform" / "Resources" / "Icons" / "DRDMPhantom.png").read_bytes()[16:24]
    assert (int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")) == (288, 261)


def test_what_is_shipped_is_small_enough():
    """The index refuses repositories above 100 MB."""
    folders = ("DRDMLib", "DRDMDeform", "Resources", "Testing", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60e6


def test_version_and_paper_are_the_same_everywhere():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["repository-code"] == meta("HOMEPAGE")
    assert citation["preferred-citation"]["doi"] in (ROOT / "README.md").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changes
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'Homepage = "{meta("HOMEPAGE")}"' in project


@pytest.mark.parametrize("name", [".github/workflows/tests.yml", ".pre-commit-config.yaml"])
def test_automation_files_can_be_read(name):
    """And name files, folders and extras that are there."""
    yaml = pytest.importorskip("yaml")
    text = (ROOT / name).read_text(encoding="utf-8")
    assert yaml.safe_load(text)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r'-e "\.\[([\w-]+)\]"', text):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    for path in re.findall(r"\.ci/run|Testing/\w+|constraints\.txt", text):
        assert (ROOT / path).exists(), path


def test_functions_that_are_marked_as_slow_exist():
    spec = importlib.util.spec_from_file_location("markers", ROOT / "conftest.py")
    markers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(markers)
    assert all((ROOT / place).exists() for place in markers.FILES)
    for name, functions in markers.SLOW.items():
        text = (ROOT / "Testing" / "core" / f"{name}.py").read_text(encoding="utf-8")
        for function in functions:
            assert f"def {function}(" in text, f"{name}.{function}"
