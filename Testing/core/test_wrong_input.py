"""Input that can be read but is not what it should be gets one warning line."""

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import boxes, scene, write

from DRDMLib.errors import FallbackWarning
from DRDMLib.io.label_maps import distinct_values, label_warning, mask_warning
from DRDMLib.training.loop import last_validation


def like(image, array):
    made = sitk.GetImageFromArray(array)
    made.CopyInformation(image)
    return made


def parcels(image, count):
    """A label map of many large pieces: stripes along the slowest axis, with a background."""
    array = np.zeros(image.GetSize()[::-1], np.int16)
    array[2:-2, 2:-2, 2:-2] = 1 + np.arange(array.shape[0] - 4)[:, None, None] % count
    return like(image, array)


def test_good_labels_and_images_give_no_warning():
    image = scene()
    for label in (boxes(image), parcels(image, 9), sitk.Cast(boxes(image), sitk.sitkInt64), boxes(image) * 0):
        assert label_warning(label, image, "x") == ""
    assert mask_warning(image, "x") == ""
    # A single slice of a tube, one voxel wide: no neighbors at all.
    thin = np.zeros(image.GetSize()[::-1], np.uint8)
    thin[:, 5, 5], thin[:, 9, 9], thin[:, 12, 3] = 1, 2, 3
    assert label_warning(like(image, thin), image, "x") == ""


def test_labels_that_are_none():
    image = scene()
    other = scene()[::-1, :, :]
    other.CopyInformation(image)
    negative = sitk.Cast(boxes(image), sitk.sitkInt16) - 5
    many = like(image, np.arange(image.GetNumberOfPixels()).reshape(image.GetSize()[::-1]) // 8)
    noise = like(image, np.random.default_rng(0).integers(0, 60, image.GetSize()[::-1]).astype(np.uint8))
    assert "is the image itself" in label_warning(image, image, "x")
    assert "300" in label_warning(other, image, "x")
    assert "-5" in label_warning(negative, image, "x")
    assert "300" in label_warning(many, image, "x")
    assert "neighbors" in label_warning(noise, image, "x")
    assert "swapped" in label_warning(image, boxes(image), "x")
    assert "two values" in mask_warning(boxes(image) == 1, "x")


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint64, np.float32])
def test_values_are_counted_in_every_type(kind):
    array = np.zeros((3, 4, 5), kind)
    array[1, 1, 1:4] = [7, 100, 3]
    array[2, 0, 0] = 120
    if np.issubdtype(kind, np.signedinteger):
        array[0, 0, 0] = np.iinfo(kind).min
    assert np.array_equal(distinct_values(sitk.GetImageFromArray(array)), np.unique(array))
    assert distinct_values(sitk.GetImageFromArray(array), 3) is None


def test_deform_warns_of_the_scan_as_its_label(tmp_path, tiny_models, drdm):
    scan = write(scene(), tmp_path / "scan.nii.gz")
    common = ["--model", tiny_models[3], "--device", "cpu", "--steps", 1]
    made = drdm("deform", scan, "-o", tmp_path / "a", "--label", scan, *common)
    assert made.status == 0 and sum("is the image itself" in line for line in made.err.splitlines()) == 1
    mask = write(boxes(scene()) == 1, tmp_path / "mask.nii.gz")
    made = drdm("deform", mask, "-o", tmp_path / "b", *common)
    assert made.status == 0 and sum("two values" in line for line in made.err.splitlines()) == 1


def test_augment_warns_of_images_and_labels_that_are_swapped(tmp_path, tiny_models, drdm):
    for k in range(2):
        write(boxes(scene()), tmp_path / "data" / "images" / f"s{k}.nii.gz")
        write(scene(), tmp_path / "data" / "labels" / f"s{k}.nii.gz")
    made = drdm(
        *("augment", tmp_path / "data", "-o", tmp_path / "out", "--model", tiny_models[3], "--device", "cpu"),
        *("--steps", 1, "--levels", 20, "--no-quality"),
    )
    assert sum("swapped" in line for line in made.err.splitlines()) == 2, made.err


def test_a_training_on_one_scan_that_learned_nothing_says_so(tmp_path, drdm):
    write(scene(), tmp_path / "one" / "images" / "a.nii.gz")
    short = ["--size", 16, "--iterations", 2, "--batch", 2, "--width", 8, "--depth", 1, "--device", "cpu"]
    made = drdm("train", tmp_path / "one", "-o", tmp_path / "run1", *short)
    assert made.status == 0 and "only one scan" in made.err
    for k in range(3):
        write(scene(), tmp_path / "three" / "images" / f"{k}.nii.gz")
    # A rate that high spoils the network at once.
    made = drdm("train", tmp_path / "three", "-o", tmp_path / "run", *short, "--hold-out", 2, "--learning-rate", 0.3)
    assert made.status == 0 and "only one scan" not in made.err
    learned = last_validation(tmp_path / "run") < 1
    assert ("try it with" in made.err) == learned and ("has not learned anything" in made.err) != learned
    assert last_validation(tmp_path / "run1") is None


def test_the_end_of_a_training_depends_on_its_validation(tmp_path, drdm, monkeypatch):
    from DRDMLib.cli.train import _report_result

    said = []

    class Reporter:
        message = warning = said.append

    for loss, good in ((1.02, False), (0.4, True), ("nan", True)):
        (tmp_path / "log.csv").write_text(f"step,validation\n10,2.0\n20,{loss}\n")
        said.clear()
        _report_result(tmp_path / "model.safetensors", Reporter())
        assert ("try it" in " ".join(said)) == good and len(said) == (1 if good else 2)
    with pytest.warns(FallbackWarning, match="two values"):
        from DRDMLib import read_image

        read_image(write(boxes(scene()) == 1, tmp_path / "m.nii.gz"))
