"""The pages of ``drdm gallery``: pictures of scans beside their versions, and the blinded test."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
from support import smooth_image

from DRDMLib.cli import main


def contents(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    assert "src=" not in text.split("<script>")[0] and "href=" not in text.split("<script>")[0]
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))


def read_picture(uri: str, folder: Path) -> sitk.Image:
    path = folder / "picture.png"
    path.write_bytes(base64.b64decode(uri.removeprefix("data:image/png;base64,")))
    return sitk.ReadImage(str(path))


@pytest.fixture
def scans(tmp_path) -> Path:
    folder = tmp_path / "Bilder <ä>"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number, name in enumerate(("a", "b")):
        image = smooth_image((24, 20, 18), seed=number)
        sitk.WriteImage(image, str(folder / "images" / f"{name}.nii.gz"))
        sitk.WriteImage(sitk.Cast(image > 150, sitk.sitkUInt8), str(folder / "labels" / f"{name}.nii.gz"))
    return folder


def run(scans: Path, page: Path, model: Path, *more: str) -> int:
    how = ["--model", str(model), "--levels", "3", "5", "--versions", "2", "--steps", "1", "--progress", "none"]
    return main(["gallery", str(scans), "-o", str(page), *how, *more])


def test_pages(scans, tmp_path, tiny_models, capsys):
    (scans / "images" / "c.nii.gz").write_bytes(b"no image")
    page, blind = tmp_path / "seite.html", tmp_path / "blind.html"
    assert run(scans, page, tiny_models[3], "--blind", str(blind)) == 0
    assert "'c'" in capsys.readouterr().err
    shown = contents(page)
    assert shown["title"] == "Bilder <ä>" and "<ä>" not in page.read_text(encoding="utf-8").split("<script>")[0]
    assert [card["name"] for card in shown["cards"]] == ["a", "b"]
    first = shown["cards"][0]
    assert [(row["level"], len(row["pictures"])) for row in first["rows"]] == [(3, 2), (5, 2)]
    pictures = [first["original"], *(picture for row in first["rows"] for picture in row["pictures"])]
    assert len(set(pictures)) == 5
    assert {read_picture(picture, tmp_path).GetSize() for picture in pictures} == {(240, 240)}

    test = contents(blind)
    key = json.loads(base64.b64decode(test["key"])[::-1])
    answers = [answer for answer, _ in key]
    assert len(test["pictures"]) == len(key) == 10
    assert answers.count("real") == 2 and answers.count("3") == answers.count("5") == 4
    assert "real" not in json.dumps(test["pictures"]) and answers != sorted(answers)

    # The same seed draws the same pages.
    again = tmp_path / "again.html"
    assert run(scans, again, tiny_models[3]) == 0
    assert again.read_bytes() == page.read_bytes()


def test_one_image_is_enough(scans, tmp_path, tiny_models):
    page = tmp_path / "one.html"
    assert run(scans / "images" / "a.nii.gz", page, tiny_models[3]) == 0
    assert len(contents(page)["cards"]) == 1


@pytest.mark.parametrize("name", ["page.txt", "there.html", "missing/page.html"])
def test_pages_that_cannot_be_written(name, scans, tmp_path, tiny_models, capsys):
    there = tmp_path / "there.html"
    there.write_text("mine")
    assert run(scans, tmp_path / name, tiny_models[3]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and name.split("/")[0] in error and there.read_text() == "mine"
