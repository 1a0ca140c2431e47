"""Datasets for runs: tables, DICOM folders, nnU-Net datasets, labels of all types, mixed sizes and dimensions."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import array_of, boxes, scene, write
from production_helpers import make, records_of, report_of, write_cases

from DRDMLib.errors import ImageError
from DRDMLib.io import datasets
from DRDMLib.production.plan import AUGMENT, SYNTHESIZE


def write_series(folder, number, patient, description="", slices=5):
    """Write a DICOM series in files without a suffix, as in archives."""
    folder.mkdir(parents=True, exist_ok=True)
    volume = scene((16, 14, slices))
    root = "1.2.826.0.1.3680043.2.1125"
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    for k in range(slices):
        one = volume[:, :, k]
        tags = {
            "0008|0018": f"{root}.{number}.{k + 1}",
            "0008|0060": "MR",
            "0008|103e": description,
            "0010|0020": patient,
            "0018|0050": "2",
            "0020|000d": f"{root}.1",
            "0020|000e": f"{root}.{number}",
            "0020|0013": str(k + 1),
            "0020|0032": f"0\\0\\{2 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            one.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"IM{number}{k:02d}"))
        writer.Execute(one)


def test_a_tree_of_dicom_folders(tmp_path, tiny_models):
    root = tmp_path / "Archiv 1"
    write_series(root / "P1" / "day 1", 1, "P1")
    write_series(root / "P1" / "day 2", 2, "P1", "T1")
    write_series(root / "P1" / "day 2", 3, "P1", "T2 tse")
    write_series(root / "P2" / "day 1", 4, "P2")
    (root / "P2" / "notes.txt").write_text("none")
    folder = tmp_path / "pairs"
    make(root, folder, tiny_models[3], SYNTHESIZE)
    written = records_of(folder)
    assert len(written) == 4
    by_case = {record["case"]: record for record in written.values()}
    assert set(by_case) == {"P1-day 1", "P1-day 2-1-T1", "P1-day 2-2-T2-tse", "P2-day 1"}
    assert {name: r["subject"] for name, r in by_case.items()} == {n: n[:2] for n in by_case}
    first = sitk.ReadImage(str(folder / by_case["P1-day 1"]["files"]["image"]))
    assert first.GetSize() == (16, 14, 5) and first.GetSpacing()[2] == 2
    # Two series in one folder are two images.
    assert by_case["P1-day 2-1-T1"]["source"]["series"] != by_case["P1-day 2-2-T2-tse"]["source"]["series"]


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_table(separator, tmp_path, tiny_models):
    """With relative paths, non-ASCII letters, cases without labels, given names and several types of files."""
    for k, suffix in enumerate((".nii", ".nrrd", ".mha")):
        write(scene((16, 15, 14)), tmp_path / "Bilder ä" / f"{k}{suffix}")
    write(boxes(scene((16, 15, 14))), tmp_path / "Masken" / "0.nrrd")
    lines = [
        ("subject", "Image", "label", "name"),
        ("Ä", "Bilder ä/0.nii", "Masken/0.nrrd", "eins"),
        ("Ä", "Bilder ä/1.nrrd", "", ""),
        ("", "Bilder ä/2.mha", "", "drei"),
    ]
    table = tmp_path / "Fälle.csv"
    table.write_text("\n".join(separator.join(line) for line in lines) + "\n", encoding="utf-8-sig")
    found = datasets.find_cases(table)
    assert [(case.name, case.subject) for case in found] == [("eins", "Ä"), ("1", "Ä"), ("drei", "drei")]
    make(table, tmp_path / "pairs", tiny_models[3], SYNTHESIZE)
    written = records_of(tmp_path / "pairs")
    assert {r["case"]: "label" in r["files"] for r in written.values()} == {"eins": True, "1": False, "drei": False}
    described = json.loads((tmp_path / "pairs" / "dataset.json").read_text(encoding="utf-8"))
    assert sum("label" in entry for entry in described["training"]) in (0, 2)
    make(table, tmp_path / "set", tiny_models[3], AUGMENT)
    report = report_of(tmp_path / "set")
    assert {item["source"] for item in report["items"]} == {"eins"}
    assert sorted(text.split(":")[0] for text in report["failures"]) == ["1", "drei"]


def test_a_table_without_images_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("image,label\n,a.nii\n", encoding="utf-8")
    with pytest.raises(ImageError, match="has no image"):
        datasets.find_cases(tmp_path / "t.csv")


def write_nnunet(folder, described):
    """Write two cases with two channels and label values 0, 1, 2."""
    for number, name in enumerate(("case_001", "case_002")):
        image = scene((18, 16, 14 + number))
        other = sitk.Cast(sitk.InvertIntensity(image, 500), sitk.sitkFloat32)
        array = sitk.GetArrayFromImage(boxes(image))
        array[array == 3] = 2
        label = sitk.GetImageFromArray(array)
        label.CopyInformation(image)
        write(image, folder / "imagesTr" / f"{name}_0000.nii.gz")
        write(other, folder / "imagesTr" / f"{name}_0001.nii.gz")
        write(label, folder / "labelsTr" / f"{name}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps(described), encoding="utf-8")


def test_an_nnunet_dataset_keeps_its_channels_and_names(tmp_path, tiny_models):
    described = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "whole": [1, 2], "core": 2},
        "regions_class_order": [1, 2],
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    write_nnunet(tmp_path / "Dataset001_X", described)
    folder = tmp_path / "Dataset501_X"
    make(tmp_path / "Dataset001_X", folder, tiny_models[3])
    written = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert written == described | {"numTraining": 6}
    images = sorted(p.name for p in (folder / "imagesTr").iterdir())
    assert len(images) == 12 and "case_002_t40_000_0001.nii.gz" in images
    # Channel 1 is a function of channel 0; deformed by the same field, it nearly still is.
    first, second = (array_of(folder / "imagesTr" / f"case_001_t40_000_{k:04d}.nii.gz") for k in (0, 1))
    assert np.abs(first + second - 500).max() <= 1


@pytest.mark.parametrize("kind", [sitk.sitkFloat32, sitk.sitkFloat64, sitk.sitkInt16, sitk.sitkUInt8])
def test_labels_of_any_type_become_consecutive_for_nnunet(kind, tmp_path, tiny_models):
    """One case has the values 0, 1, 3, the other one 0, 1, 7."""
    data = write_cases(tmp_path / "data")
    for name, value in (("a", 3), ("b", 7)):
        path = data / "labels" / f"{name}.nii.gz"
        label = sitk.ReadImage(str(path))
        sitk.WriteImage(sitk.Cast(sitk.ChangeLabel(label, {3: value}), kind), str(path))
    folder = tmp_path / "out"
    make(data, folder, tiny_models[3])
    written = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert written["labels"] == {"background": 0, "label_1": 1, "label_3": 2, "label_7": 3}
    assert written["original_label_values"] == {"2": 3, "3": 7}
    for name, values in (("a", {0, 1, 2}), ("b", {0, 1, 3})):
        array = array_of(folder / "labelsTr" / f"{name}_t40_000.nii.gz")
        assert array.dtype.kind in "iu" and set(np.unique(array)) == values


def test_mixed_sizes_and_a_2d_image_among_volumes(tmp_path, tiny_models):
    data = write_cases(tmp_path / "data", ("a", "b", "c", "d"))
    write(scene((30, 12, 8)), data / "images" / "b.nii.gz")
    write(boxes(scene((30, 12, 8))), data / "labels" / "b.nii.gz")
    write(scene((30, 24)), data / "images" / "c.nii.gz")
    write(boxes(scene((30, 24))), data / "labels" / "c.nii.gz")
    write(sitk.GetImageFromArray(np.full((8, 8, 8), 3, np.int16)), data / "images" / "d.nii.gz")
    folder = tmp_path / "out"
    run, reporter = make(data, folder, tiny_models[3])
    assert {item["source"] for item in report_of(folder)["items"]} == {"a", "b"}
    assert [text.split(":")[0] for text in run.failures()] == ["c", "d"]
    assert sum(text.startswith("Left out: ") for text in reporter.messages) == 2
    assert array_of(folder / "imagesTr" / "b_t40_000_0000.nii.gz").shape == (8, 12, 30)


def test_2d_images(tmp_path, tiny_models):
    data = write_cases(tmp_path / "data", ("a", "b"), size=(30, 26))
    make(data, tmp_path / "pairs", tiny_models[2], SYNTHESIZE, voxel_fields=True)
    described = json.loads((tmp_path / "pairs" / "dataset.json").read_text(encoding="utf-8"))
    assert described["tensorImageSize"] == "2D" and described["numPairs"] == 2
    for record in records_of(tmp_path / "pairs").values():
        voxels = array_of(tmp_path / "pairs" / record["files"]["voxel_ddf"])
        millimeters = array_of(tmp_path / "pairs" / record["files"]["ddf"])
        spacing = sitk.ReadImage(str(tmp_path / "pairs" / record["files"]["image"])).GetSpacing()
        # (component, Y, X) in voxels along X, Y; (Y, X, component) in millimeters.
        assert np.allclose(np.moveaxis(voxels, 0, -1) * spacing, millimeters, atol=1e-4)


def test_fields_in_voxels_lead_from_fixed_to_moving(tmp_path, tiny_models):
    """Check fixed[i] = moving[i + u[i]] on an oblique grid, with arrays as in PyTorch."""
    from scipy.ndimage import map_coordinates
    from support import rotation, smooth_image

    image = smooth_image((30, 26, 20), (1.0, 1.3, 2.1), rotation(20, -15, 30), (5.0, -40.0, 12.0), sitk.sitkFloat32)
    write(image, tmp_path / "data" / "images" / "a.nii.gz")
    folder = tmp_path / "pairs"
    make(tmp_path / "data", folder, tiny_models[3], SYNTHESIZE, voxel_fields=True)
    ((record),) = records_of(folder).values()
    fixed, moving = (array_of(folder / record["files"][kind]).T for kind in ("image", "moving"))
    voxels = array_of(folder / record["files"]["voxel_ddf"]).T
    assert voxels.shape == (*image.GetSize(), 3)
    indices = np.stack(np.meshgrid(*map(np.arange, fixed.shape), indexing="ij")) + np.moveaxis(voxels, -1, 0)
    again = map_coordinates(moving, indices, order=1, mode="nearest")
    assert np.abs(again - fixed)[3:-3, 3:-3, 3:-3].max() < 1e-2 * np.ptp(fixed)
    assert np.abs(moving - fixed)[3:-3, 3:-3, 3:-3].max() > 0.1 * np.ptp(fixed)
