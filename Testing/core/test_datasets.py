"""Datasets as other programs write them: names, tables, dataset.json. No model runs here."""

import json
import unicodedata

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import boxes, scene, write

from DRDMLib.errors import FallbackWarning, ImageError
from DRDMLib.io.datasets import find_cases, read_dataset
from DRDMLib.io.files import SUFFIXES, image_stem
from DRDMLib.io.images import read_image
from DRDMLib.production.layouts import consecutive, nnunet_dataset, undeclared
from DRDMLib.production.plan import AUGMENT, Plan, RunSettings
from DRDMLib.production.sources import read_source


def touch(folder, *names):
    """Make empty files; the names of cases do not depend on what is in them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def nnunet(folder, images, labels, described=None):
    touch(folder, *(f"imagesTr/{name}.nii.gz" for name in images), *(f"labelsTr/{name}.nii.gz" for name in labels))
    if described is not None:
        (folder / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    found = read_dataset(folder)
    cases = {
        case.name: ([image_stem(p) for p in (case.image, *case.channels)], case.label and image_stem(case.label))
        for case in found.cases
    }
    return cases, found


@pytest.mark.parametrize(
    "names",
    [("word_0000", "word_0001", "word_0002"), ("amos_0001", "amos_0004"), ("hippocampus_001", "hippocampus_003")],
)
@pytest.mark.parametrize("labeled", [True, False])
def test_images_without_channel_numbers_are_cases(names, labeled, tmp_path):
    described = {"modality": {"0": "CT"}}
    cases, found = nnunet(tmp_path, names, names if labeled else (), described)
    assert cases == {name: ([name], name if labeled else None) for name in names}
    assert {case.subject for case in found.cases} == set(names)
    assert any("numbers of cases" in text for text in found.notes) == (len(names[0].rpartition("_")[2]) == 4)


def test_channels_of_nnunet(tmp_path):
    cases, found = nnunet(tmp_path, ("a_0000", "a_0001", "b_0000", "b_0001"), ("a", "b"))
    assert cases == {"a": (["a_0000", "a_0001"], "a"), "b": (["b_0000", "b_0001"], "b")}
    assert not found.notes and not found.unused


def test_channels_of_unlabeled_cases(tmp_path):
    described = {"channel_names": {"0": "T1", "1": "T2"}}
    cases, _ = nnunet(tmp_path, ("a_0000", "a_0001"), (), described)
    assert cases == {"a": (["a_0000", "a_0001"], None)}


def test_a_case_with_a_missing_channel_is_left_out(tmp_path):
    cases, found = nnunet(tmp_path, ("a_0000", "a_0001", "b_0001"), ("a", "b"))
    assert list(cases) == ["a"]
    assert any(text.startswith("Left out: 'b'") and "0000" in text for text in found.notes)
    assert found.unused == ["labelsTr/b.nii.gz"]


def test_labels_of_learn2reg_have_the_number_too(tmp_path):
    names = ("OASIS_0001_0000", "OASIS_0002_0000")
    cases, found = nnunet(tmp_path, names, names)
    assert cases == {"OASIS_0001": (["OASIS_0001_0000"], names[0]), "OASIS_0002": (["OASIS_0002_0000"], names[1])}
    assert not found.unused


def test_fixed_and_moving_images_of_learn2reg_show_one_person(tmp_path):
    names = [f"NLST_{k:04d}_{n:04d}" for k in (1, 2) for n in (0, 1)]
    for labels in (names, ()):
        folder = tmp_path / str(len(labels))
        described = {"registration_direction": {"fixed": 0, "moving": 1}, "modality": {"0": "CT", "1": "CT"}}
        cases, found = nnunet(folder, names, labels, described)
        assert cases == {name: ([name], name if labels else None) for name in names}
        assert [case.subject for case in found.cases] == ["NLST_0001"] * 2 + ["NLST_0002"] * 2


def test_missing_labels_and_unused_files_are_named(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "images/c.abc", "labels/a_seg.nii.gz", "labels/b.nii.gz")
    touch(tmp_path, "masks/a.nii.gz", "images/a.json", "images/.DS_Store")
    found = read_dataset(tmp_path)
    assert [case.label is not None for case in found.cases] == [False, True]
    assert any("1 of 2 labels" in text for text in found.notes)
    assert found.unused == ["labels/a_seg.nii.gz", "images/c.abc", "masks (1 images)"]
    (tmp_path / "labels" / "b.nii.gz").unlink()
    with pytest.warns(FallbackWarning) as caught:
        find_cases(tmp_path)
    texts = [str(warning.message) for warning in caught]
    assert any("0 of 2 labels" in text for text in texts)
    assert any("'labels/a_seg.nii.gz'" in text for text in texts)


def test_nothing_is_said_of_missing_labels_where_none_are_wanted(tmp_path, recwarn):
    touch(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz")
    assert [case.name for case in find_cases(tmp_path, labels=False)] == ["a", "b"]
    assert not recwarn.list
    with pytest.warns(FallbackWarning, match="1 of 2 labels found"):
        find_cases(tmp_path)


def test_labels_below_folders_belong_to_images_below_folders(tmp_path):
    touch(tmp_path, "images/p1/t1.nii.gz", "labels/p1/t1.nii.gz", "images/p2/t1.nii.gz", "labels/p2/t1.nrrd")
    found = read_dataset(tmp_path)
    assert [(case.name, case.label.parent.name) for case in found.cases] == [("p1-t1", "p1"), ("p2-t1", "p2")]


@pytest.mark.parametrize(
    "layout", [("images/{}.nii.gz", "labels/{}.nii.gz"), ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz")]
)
def test_composed_and_decomposed_letters_are_the_same(layout, tmp_path):
    names = [unicodedata.normalize(form, "Schädel") for form in ("NFD", "NFC")]
    touch(tmp_path, layout[0].format(names[0]), layout[1].format(names[1]))
    (case,) = read_dataset(tmp_path).cases
    assert case.label is not None and case.name == names[1]


def test_dots_in_names(tmp_path):
    names = ("1.2.840.1", "1.2.840.2", "v1.5_a")
    touch(tmp_path, *(f"{folder}/{name}.nii.gz" for name in names for folder in ("images", "labels")))
    found = read_dataset(tmp_path)
    assert [case.name for case in found.cases] == sorted(names) and all(case.label for case in found.cases)
    # Files of DICOM archives have no suffix.
    assert image_stem("1.2.840.2") == "1.2.840.2" and image_stem("scan.IMA") == "scan"


@pytest.mark.parametrize("suffix", [".hdr", ".img.gz", ".nhdr", ".gipl", ".gipl.gz", ".vtk", ".mrc", ".hdf5"])
def test_every_suffix_of_a_volume(suffix, tmp_path):
    image = scene((12, 11, 10))
    path = write(image, tmp_path / "images" / f"a{suffix}")
    (case,) = read_dataset(tmp_path).cases
    assert case.name == "a"
    assert np.array_equal(sitk.GetArrayFromImage(read_image(case.image)), sitk.GetArrayFromImage(image))
    assert path.name.endswith(SUFFIXES)


@pytest.mark.parametrize("suffix", [".jpeg", ".tif", ".png", ".JPG"])
def test_every_suffix_of_a_picture(suffix, tmp_path):
    write(scene((32, 32), pixel=sitk.sitkUInt8), tmp_path / "images" / f"a{suffix}")
    (case,) = read_dataset(tmp_path).cases
    assert case.name == "a" and read_image(case.image).GetSize() == (32, 32)


ROWS = (("image", "subject"), ("Schädel/p1.nii.gz", "Müller"))


@pytest.mark.parametrize(
    ("separator", "encoding", "start"),
    [
        (";", "utf-8-sig", ""),
        ("\t", "utf-8", ""),
        ("\t", "utf-16", ""),
        (";", "utf-16-be", "\ufeff"),
        (";", "utf-16-le", ""),
        (";", "utf-8", "sep=;\r\n"),
        (",", "cp1252", '"sep=,"\r\n'),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_tables_from_excel(separator, encoding, start, suffix, tmp_path):
    touch(tmp_path, "Schädel/p1.nii.gz")
    table = tmp_path / f"t{suffix}"
    table.write_bytes((start + "\r\n".join(separator.join(row) for row in ROWS)).encode(encoding))
    found = read_dataset(table)
    assert [(case.name, case.subject) for case in found.cases] == [("p1", "Müller")]
    assert found.cases[0].image.exists()
    assert any("Windows-1252" in text for text in found.notes) == (encoding == "cp1252")


def test_an_empty_first_cell_of_a_table_with_tabs(tmp_path):
    (tmp_path / "t.tsv").write_text("subject\timage\n\ta.nii\nS\tb.nii\n", encoding="utf-8")
    found = read_dataset(tmp_path / "t.tsv")
    assert [(case.name, case.subject) for case in found.cases] == [("a", "a"), ("b", "S")]


def test_paths_in_a_table_from_another_system(tmp_path):
    name = unicodedata.normalize("NFD", "Schädel")
    touch(tmp_path, f"x/{name}.nii.gz")
    (tmp_path / "t.csv").write_text("image\nx\\Schädel.nii.gz\n", encoding="utf-8")
    (case,) = read_dataset(tmp_path / "t.csv").cases
    assert case.image.exists() and case.name == "Schädel"


def test_bad_rows_are_left_out_and_unknown_columns_named(tmp_path):
    lines = ("image;mask", "a.nii;b.nii", ";x.nii", ";;;", "c.nii;d.nii;e.nii", f"{'x' * 300}.nii;")
    (tmp_path / "t.csv").write_text("\n".join(lines), encoding="utf-8")
    found = read_dataset(tmp_path / "t.csv")
    assert [case.name for case in found.cases] == ["a"]
    text = " ".join(found.notes)
    assert "Line 3" in text and "'mask'" in text and "too long" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scan;mask\na.nii;b.nii\n", "no column 'image'"),
        ("image,image\na.nii,b.nii\n", "two columns"),
        ('image,label\n"a.nii,b.nii\nc.nii,d.nii\n', "quotation marks"),
        ("PK\x03\x04 workbook", "CSV"),
        ("\x01\x02\x03\x04\x05\x06", "not a text"),
    ],
)
def test_tables_that_are_refused(text, says, tmp_path):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ImageError, match=says):
        read_dataset(tmp_path / "t.csv")


DESCRIBED = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1, "ignore": 2}}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_dataset_json_of_any_encoding(encoding, tmp_path):
    from DRDMLib.io.datasets import nnunet_description

    (tmp_path / "dataset.json").write_bytes(json.dumps(DESCRIBED).encode(encoding))
    assert nnunet_description(tmp_path) == DESCRIBED


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"labels": {"a": 1},\n}', "line 2, column 1"),
        (b'{"labels": {"a": 1, "a": 2}}', "'a' is there twice"),
        (b"[1]", "not a JSON object"),
        ('{"name": "Schädel"}'.encode("cp1252"), "UTF-8"),
        (b"", "line 1"),
    ],
)
def test_a_slip_in_dataset_json_is_said(data, says, tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz")
    (tmp_path / "dataset.json").write_bytes(data)
    with pytest.raises(ImageError, match=says):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    ("labels", "values", "mapping", "named"),
    [
        # As it is declared.
        ({"background": 0, "a": 1, "ignore": 2}, {0, 1, 2}, {}, {"background": 0, "a": 1, "ignore": 2}),
        # An undeclared value becomes a class; the ignore label stays the highest.
        (
            {"background": 0, "a": 1, "ignore": 2}, {0, 1, 2, 7},
            {2: 3, 7: 2}, {"background": 0, "a": 1, "label_7": 2, "ignore": 3},
        ),
        ({"background": 0, "a": 5, "ignore": 255}, {0, 5, 255}, {5: 1, 255: 2}, {"background": 0, "a": 1, "ignore": 2}),
        ({"background": 0, "ignore": 1, "a": 2}, {0, 1, 2}, {1: 2, 2: 1}, {"background": 0, "a": 1, "ignore": 2}),
        # Regions.
        ({"background": 0, "all": [1, 4], "core": 4}, {0, 1, 4}, {4: 2}, {"background": 0, "all": [1, 2], "core": 2}),
        # The Decathlon, and Learn2Reg.
        ({"0": "Background", "1": "liver"}, {0, 1}, {}, {"background": 0, "liver": 1}),
        ({"0": {"0": "background", "3": "x"}}, {0, 3}, {3: 1}, {"background": 0, "x": 1}),
    ],
)  # fmt: skip
def test_labels_are_numbered_as_declared(labels, values, mapping, named):
    numbers, made = consecutive(values, {"labels": labels})
    assert {old: new for old, new in numbers.items() if old != new} == mapping
    assert made == named and set(numbers) >= values
    assert list(made)[-1] == "ignore" or "ignore" not in made
    assert undeclared(values, {"labels": labels}) == ([7] if 7 in values else [])


def test_labels_of_one_value_are_refused():
    for labels in ({"background": 0, "a": 1, "b": 1}, {"background": 0, "w": [1, 2], "ignore": 2}):
        with pytest.raises(ImageError, match="value"):
            consecutive({0, 1, 2}, {"labels": labels})
    assert consecutive({0, 1, 2}, {"labels": {"background": 0, "whole": [1, 2], "core": 2}})


@pytest.mark.parametrize("labels", [{"a": "one"}, {"a": 1.5}, {"a": [1, None]}, [1], {"background": 0, "ignore": 0}])
def test_labels_that_are_no_numbers_are_refused(labels):
    with pytest.raises(ImageError, match=r"dataset\.json"):
        consecutive({0, 1}, {"labels": labels})


def test_regions_keep_their_order_when_values_change():
    described = {"labels": {"background": 0, "all": [1, 4], "core": 4}, "regions_class_order": [1, 4]}
    mapping, labels = consecutive({0, 1, 4}, described)
    written = nnunet_dataset(Plan(RunSettings(AUGMENT, ((1,),)), [], []), [], labels, mapping, described)
    assert written["regions_class_order"] == [1, 2]


def test_a_further_channel_may_be_empty(tmp_path):
    image = scene((12, 11, 10))
    write(image, tmp_path / "imagesTr" / "a_0000.nii.gz")
    write(image * 0, tmp_path / "imagesTr" / "a_0001.nii.gz")
    write(boxes(image), tmp_path / "labelsTr" / "a.nii.gz")
    (case,) = find_cases(tmp_path)
    assert not sitk.GetArrayFromImage(read_source(case, need_label=True).channels[0]).any()
    write(image * 0, tmp_path / "imagesTr" / "a_0000.nii.gz")
    with pytest.raises(ImageError, match="contrast"):
        read_source(case, need_label=True)


def test_values_that_a_label_cannot_hold_change_nothing(tmp_path):
    """300 is a value of another case's label; in 8 bits it would be 44."""
    image = scene((12, 11, 10))
    label = sitk.ChangeLabel(boxes(image), {3: 44})
    write(image, tmp_path / "images" / "a.nii.gz")
    write(label, tmp_path / "labels" / "a.nii.gz")
    (case,) = find_cases(tmp_path)
    read = read_source(case, need_label=True, values={0: 0, 1: 1, 44: 2, 300: 3})
    assert set(np.unique(sitk.GetArrayFromImage(read.label))) == {0, 1, 2}
