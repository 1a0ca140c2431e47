"""Results of a run over a dataset: records that make a sample again, limits, splits, the quality page."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import array_of, boxes, scene, write
from production_helpers import make, records_of, report_of, write_cases

from DRDMLib import __version__
from DRDMLib.drawing import THUMBNAIL
from DRDMLib.errors import ImageError, ModelError, OutputError
from DRDMLib.io.datasets import find_cases
from DRDMLib.models.catalogue import digest_of
from DRDMLib.production.layouts import folds, split_subjects
from DRDMLib.production.limits import Limits
from DRDMLib.production.plan import AUGMENT, SYNTHESIZE
from DRDMLib.production.quality import find_outliers, thumbnail
from DRDMLib.production.regenerate import regenerate
from DRDMLib.production.sources import read_source


@pytest.mark.parametrize(("command", "ndim", "pose"), [(AUGMENT, 3, 1.0), (SYNTHESIZE, 3, 0.0), (SYNTHESIZE, 2, 0.5)])
def test_every_sample_is_regenerated_exactly_from_its_record(command, ndim, pose, tmp_path, tiny_models):
    data = write_cases(tmp_path / "Bilder und Größen", size=(22, 20, 18)[:ndim])
    folder = tmp_path / "out"
    make(data, folder, tiny_models[ndim], command, voxel_fields=True, pose=pose)
    assert {item["pose"] for item in report_of(folder)["items"]} == {pose}
    written = records_of(folder)
    assert len(written) == (6 if command == AUGMENT else 2)
    for name, record in written.items():
        assert record["software"]["drdm"] == __version__
        assert record["model"] == {"name": tiny_models[ndim].stem, "digest": digest_of(tiny_models[ndim], "sha256")}
        again = regenerate(
            folder / "records" / f"{name}.json", tmp_path / f"again {name}", model=str(tiny_models[ndim])
        )
        assert not again.differences and not again.environment_differences
        assert {k: p.read_bytes() for k, p in again.files.items()} == {
            k: (folder / f).read_bytes() for k, f in record["files"].items()
        }
        kinds = {"image", "label"} if not record["levels"] else {"image", "label", "thumbnail", "layers"}
        kinds |= {"ddf", "voxel_ddf", "mask", "moving", "moving_label"} if command == SYNTHESIZE else set()
        assert set(again.files) == kinds


def test_differences_of_a_regenerated_sample_are_reported(tmp_path, tiny_models):
    data, folder = write_cases(tmp_path / "data", ("a",)), tmp_path / "out"
    make(data, folder, tiny_models[3])
    path = folder / "records" / "a_t40_000.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["run_seed"] += 1
    record["software"]["torch"] = "0.0"
    path.write_text(json.dumps(record), encoding="utf-8")
    again = regenerate(path, tmp_path / "again", model=str(tiny_models[3]))
    assert set(again.differences) == {"image", "label", "thumbnail", "layers"}
    assert len(again.environment_differences) == 1 and "torch" in again.environment_differences[0]


# The other image lies on another grid, so that its label is resampled before the digests are compared.
@pytest.mark.filterwarnings("ignore::DRDMLib.errors.FallbackWarning")
def test_regenerating_refuses_other_sources(tmp_path, tiny_models, tiny_model_2d_path):
    data, folder = write_cases(tmp_path / "data"), tmp_path / "out"
    make(data, folder, tiny_models[3])
    record = folder / "records" / "a_t40_000.json"
    moved = tmp_path / "moved.nii.gz"
    image = (data / "images" / "a.nii.gz").replace(moved)
    with pytest.raises(ImageError, match="no longer exists"):
        regenerate(record, tmp_path / "1", model=str(tiny_models[3]))
    with pytest.raises(ImageError, match="not the file"):
        regenerate(record, tmp_path / "2", model=str(tiny_models[3]), image=str(data / "images" / "b.nii.gz"))
    with pytest.raises(ModelError, match="not the one"):
        regenerate(record, tmp_path / "3", model=str(tiny_model_2d_path), image=str(image))
    with pytest.raises(OutputError, match="not the record"):
        regenerate(folder / "report.json", tmp_path / "4")
    assert not regenerate(record, tmp_path / "5", model=str(tiny_models[3]), image=str(image)).differences


def test_samples_beyond_the_limits_are_repeated_and_counted(tmp_path, tiny_models):
    data = write_cases(tmp_path / "data", ("a",))
    free = tmp_path / "free"
    make(data, free, tiny_models[3], copies=4, levels=((40,),))
    reached = sorted(item["metrics"]["max_mm"] for item in report_of(free)["items"])
    limit = (reached[1] + reached[2]) / 2
    kept = tmp_path / "kept"
    make(data, kept, tiny_models[3], copies=4, levels=((40,),), limits=Limits(most_mm=limit, max_attempts=50))
    report = report_of(kept)
    assert len(report["items"]) == 4
    assert all(item["metrics"]["max_mm"] <= limit for item in report["items"])
    counts = report["redrawn"]
    assert counts["samples"] == 2 and counts["draws"] >= 2 and counts["given_up"] == 0
    assert counts["reasons"] == {"too much": counts["draws"]}
    redrawn = {name: r for name, r in records_of(kept).items() if r.get("redrawn")}
    before = {item["name"]: item["seed"] for item in report_of(free)["items"]}
    for name, record in redrawn.items():
        # The first attempt is the sample without limits; the accepted one has another seed.
        assert record["redrawn"][0] == {"attempt": 0, "seed": before[name], "reason": "too much"}
        assert record["attempt"] == len(record["redrawn"]) and record["seed"] != before[name]
        assert not regenerate(kept / "records" / f"{name}.json", tmp_path / name, model=str(tiny_models[3])).differences


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(folded=None, most_mm=1e-6, max_attempts=2), "too much 2 times"),
        (Limits(folded=None, least_mm=1e6, max_attempts=2), "too little 2 times"),
    ],
)
def test_samples_that_always_break_the_limits_are_given_up(limits, reason, tmp_path, tiny_models):
    data, folder = write_cases(tmp_path / "data"), tmp_path / "out"
    with pytest.raises(ImageError, match=reason):
        make(data, folder, tiny_models[3], levels=((40,),), limits=limits)
    assert not list((folder / "imagesTr").glob("*_t40_*"))
    report = report_of(folder)
    assert report["redrawn"] | {"reasons": None} == {"draws": 4, "samples": 2, "given_up": 2, "reasons": None}
    assert [text.split(":")[0] for text in report["failures"]] == ["a_t40_000", "b_t40_000"]


def test_samples_whose_label_leaves_the_image_are_rejected(tmp_path, tiny_models):
    """The label has a layer of one voxel at the border; some attempts move it out of the image."""
    image = scene((22, 20, 18))
    array = np.zeros(image.GetSize()[::-1], np.uint8)
    array[:, :, :1], array[8:12, 8:12, 8:12] = 2, 1
    label = sitk.GetImageFromArray(array)
    label.CopyInformation(image)
    write(image, tmp_path / "data" / "images" / "a.nii.gz")
    write(label, tmp_path / "data" / "labels" / "a.nii.gz")
    folder = tmp_path / "out"
    limits = Limits(folded=None, inside=0.75, max_attempts=8)
    how = {"levels": ((40,),), "copies": 3, "limits": limits, "border": "open"}
    make(tmp_path / "data", folder, tiny_models[3], **how)
    counts = report_of(folder)["redrawn"]
    assert counts["reasons"].get("label left", 0) == counts["draws"] > 0
    for record in records_of(folder).values():
        if record["status"] == "done":
            assert set(np.unique(array_of(folder / record["files"]["label"]))) == {0, 1, 2}


def test_splits_keep_subjects_together(tmp_path, tiny_models):
    names = [f"sub-{k}_visit-{v}" for k in range(1, 6) for v in (1, 2)]
    data = write_cases(tmp_path / "data", names, size=(14, 13, 12))
    folder = tmp_path / "pairs"
    make(data, folder, tiny_models[3], SYNTHESIZE, quality=False, split=(0.6, 0.2, 0.2), levels=((6, 3),))
    splits = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
    dataset = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    subjects = [set(splits[part]["subjects"]) for part in ("train", "validation", "test")]
    assert [len(s) for s in subjects] == [3, 1, 1] and len(set.union(*subjects)) == 5
    keys = ("training_paired_images", "registration_val", "registration_test")
    for part, key, held in zip(splits.values(), keys, subjects, strict=True):
        assert {name.split("_")[0].removeprefix("sub-") for name in part["samples"]} == {
            s.removeprefix("sub-") for s in held
        }
        assert len(dataset[key]) == len(part["samples"]) == 2 * len(held)
        for pair in dataset[key]:
            assert all((folder / file).is_file() for file in pair.values())
            assert ("imagesTs" in pair["fixed"]) == (key == "registration_test")


def test_cross_validation_uses_original_images_of_other_subjects(tmp_path, tiny_models):
    data = write_cases(tmp_path / "data", ("p1a", "p1b", "p2a", "p3a"), size=(14, 13, 12))
    folder = tmp_path / "out"
    make(data, folder, tiny_models[3], subject="p\\d", quality=False, levels=((6,), (3,)))
    splits = json.loads((folder / "splits_final.json").read_text(encoding="utf-8"))
    assert len(splits) == 3
    assert sorted(name for fold in splits for name in fold["val"]) == ["p1a", "p1b", "p2a", "p3a"]
    for fold in splits:
        assert not {name[:2] for name in fold["train"]} & {name[:2] for name in fold["val"]}
        assert len(fold["train"]) == 3 * (4 - len(fold["val"]))


def test_splits_depend_only_on_names_and_seed():
    names = [f"s{k}" for k in range(40)]
    parts = split_subjects(names, (0.8, 0.1, 0.1), 0)
    assert parts == split_subjects(names[::-1] * 2, (0.8, 0.1, 0.1), 0) != split_subjects(names, (0.8, 0.1, 0.1), 1)
    assert [list(parts.values()).count(p) for p in ("train", "validation", "test")] == [32, 4, 4]
    assert set(split_subjects(["a"], (0.8, 0.1, 0.1), 0).values()) == {"train"}
    assert set.union(*folds(names, 0)) == set(names) and len(folds(names, 0)) == 5 and folds(["a"], 0) == []


class _Page(HTMLParser):
    """The links of a page, and its elements by id."""

    def __init__(self):
        super().__init__()
        self.ids, self.links, self._script, self.data = {}, [], False, ""

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.links += [found[k] for k in ("src", "href") if k in found]
        self._script = tag == "script" and found.get("id") == "data"
        if "id" in found:
            self.ids[found["id"]] = tag

    def handle_data(self, data):
        if self._script:
            self.data += data

    def handle_endtag(self, tag):
        self._script = False


def test_the_quality_page_needs_no_other_file_and_shows_outliers_first(tmp_path, tiny_models):
    data = write_cases(tmp_path / "data", ("a", "</script><b>"[2:8], "c"))
    folder = tmp_path / "a <b> & c"
    make(data, folder, tiny_models[3], copies=3, levels=((30,),))
    text = (folder / "quality.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.ids["subject"] == page.ids["order"] == "select"
    assert not page.links and "http" not in re.sub(r'"http://www.w3.org/2000/svg"', "", text)
    content = json.loads(page.data)
    assert content["title"] == folder.name and "<b>" not in text.split("<body>")[0]
    assert {s["subject"] for s in content["samples"]} == {"a", "script", "c"} and len(content["samples"]) == 9
    scores = [s["score"] for s in content["samples"]]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    for sample in content["samples"]:
        picture = base64.b64decode(sample["layers"].removeprefix("data:image/png;base64,"))
        assert picture == (folder / "quality" / f"{sample['name']}_layers.png").read_bytes()
        assert sample["has_contours"] and sample["figure"] in ("mean_mm", "max_mm", "min_jacobian", "folded_fraction")
        assert sum(sample["jacobian"]) == sum(sample["displacement_percent"]) > 0


def test_thumbnails_show_grid_and_contours(tmp_path, tiny_models):
    image = scene((40, 36, 18))
    write(image, tmp_path / "data" / "images" / "a.nii.gz")
    write(boxes(image), tmp_path / "data" / "labels" / "a.nii.gz")
    make(tmp_path / "data", tmp_path / "out", tiny_models[3], SYNTHESIZE)
    picture = array_of(tmp_path / "out" / "quality" / "a_t40-20_000.png").astype(int)
    # Moving and fixed side by side; blue lines over the fixed image only, contours on both.
    assert picture.shape == (144, 288, 3)
    blue = picture[..., 2] - picture[..., 0] > 30
    assert not blue[:, :144].any() and blue[:, 144:].mean() > 0.05
    yellow = (picture == [255, 202, 40]).all(axis=2)
    assert yellow[:, :144].any() and yellow[:, 144:].any()


def test_layers_put_together_are_the_thumbnail(tmp_path, tiny_models):
    image = scene((40, 36, 18))
    write(image, tmp_path / "data" / "images" / "a.nii.gz")
    write(boxes(image), tmp_path / "data" / "labels" / "a.nii.gz")
    make(tmp_path / "data", tmp_path / "out", tiny_models[3], levels=((40,),))
    thumbnail = array_of(tmp_path / "out" / "quality" / "a_t40_000.png").astype(float)
    layers = array_of(tmp_path / "out" / "quality" / "a_t40_000_layers.png").astype(float)
    # Three slices one below the other; that of the thumbnail is in the middle.
    assert layers.shape == (3 * 144, 5 * 144, 4)
    below, layers, above = np.split(layers, 3)
    assert np.abs(below - layers).max() > 50 or np.abs(above - layers).max() > 50
    original, new, grid, before, after = np.split(layers, 5, axis=1)
    put = new[..., :3]
    for one in (grid, after):
        part = one[..., 3:] / 255
        put = part * one[..., :3] + (1 - part) * put
    assert np.abs(put - thumbnail).max() < 3
    assert (original[..., 3] == 255).all() and np.abs(original - new)[..., :3].max() > 20
    assert 0 < (before[..., 3] > 0).mean() < 0.2


def test_outliers_are_judged_within_their_strength():
    weak = [{"a": 1.0 + 0.1 * k, "b": 0.0} for k in range(6)] + [{"a": 5.0, "b": 0.0}]
    strong = [{"a": 20.0 + k, "b": 7.0} for k in range(7)]
    found = find_outliers(weak + strong, [(20,)] * 7 + [(60,)] * 7)
    assert [k for k, one in enumerate(found) if one.score > 3.5] == [6]
    assert found[6].figure == "a" and found[6].median == pytest.approx(1.3)


def test_outliers_are_samples_far_from_the_median():
    rows = [{"a": float(v), "b": 0.0} for v in (1, 2, 3, 4, 5, 60)]
    scores = [one.score for one in find_outliers(rows, [0] * len(rows))]
    assert scores[-1] == max(scores) > 20 and max(scores[:-1]) < 3
    assert find_outliers([], []) == [] and find_outliers(rows[:1], [0])[0].score == 0


def test_results_do_not_depend_on_the_number_of_threads(tmp_path):
    """The network is large enough for torch to use several threads."""
    import torch
    from production_helpers import result

    from DRDMLib.io.resources import resource

    found = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            folder = tmp_path / str(number) / "set"
            settings = {"levels": ((10, 5),), "copies": 2, "quality": False}
            make(resource("Sample", "sample.nii.gz"), folder, "hippocampus-mr-3d", SYNTHESIZE, **settings)
            assert torch.get_num_threads() == number
            found.append(result(folder))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("axes", "up", "left"),
    [
        ("LPS", "A", "R"),
        ("RAS", "A", "R"),
        ("RPI", "A", "R"),
        # Sagittal and coronal slices: head at the top, front or right at the left.
        ("PSR", "S", "A"),
        ("AIL", "S", "A"),
        ("LSA", "S", "R"),
        ("RIP", "S", "R"),
    ],
)
def test_thumbnails_are_upright(axes, up, left):
    """The bright corner of the slice must be at the top left of the picture."""
    vectors = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    array = np.zeros((3, 8, 8), np.float32)
    row = slice(0, 4) if axes[1] != up else slice(4, 8)
    column = slice(0, 4) if axes[0] != left else slice(4, 8)
    array[:, row, column] = 1
    image = sitk.GetImageFromArray(array)
    image.SetDirection(np.stack([vectors[axis] for axis in axes], axis=1).ravel().tolist())
    field = sitk.Image([4, 4, 4], sitk.sitkVectorFloat64)
    field.SetSpacing([8.0] * 3)
    field.SetOrigin([-12.0] * 3)
    picture = thumbnail([(image, None), (image, None)], field)[:, : THUMBNAIL.side]
    assert picture[10, 10, 0] == 255 and picture[-10, 10, 0] == picture[10, -10, 0] == picture[-10, -10, 0] == 0


def test_contours_are_closed():
    image = sitk.Cast(sitk.GetImageFromArray(np.pad(np.ones((10, 10), np.float32), 4)), sitk.sitkUInt8)
    picture = thumbnail([(image, image), (image, image)], sitk.Image([18, 18], sitk.sitkVectorFloat64))[
        :, : THUMBNAIL.side
    ]
    colored = (picture == [255, 202, 40]).all(axis=2)
    inside = (picture == 255).all(axis=2)
    # Every row and column through the square crosses the contour twice.
    for lines in (colored, colored.T):
        assert all(line[:72].any() and line[72:].any() for line in lines[40:100])
    assert inside.any()


def test_samples_of_one_case_do_not_share_images(tmp_path):
    source = read_source(find_cases(write_cases(tmp_path, ("a",)))[0], need_label=True)
    apart = source.apart()
    for own, shared in ((apart.image, source.image), (apart.label, source.label)):
        assert own is not shared
        own.SetPixel([0] * own.GetDimension(), 7)
        assert shared.GetPixel([0] * own.GetDimension()) != 7
