"""The results of the ``drdm`` command."""

import contextlib
import functools
import http.server
import json
import pkgutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import array_of, boxes, names_in, report_of, run_process, scene, snapshot, write

import DRDMLib
from DRDMLib.models import catalogue
from DRDMLib.models.model import load_model_file

COMMANDS = ["demo", "deform", "apply", "augment", "synthesize", "regenerate", "train", "evaluate", "models"]
METRICS = ["mean_mm", "max_mm", "mean_percent", "max_percent", "folded_fraction", "min_jacobian"]


# drdm deform


@pytest.mark.parametrize("ndim", [2, 3])
def test_deform_writes_image_label_field_and_report(succeed, tmp_path, tiny_models, ndim):
    image = scene((26, 22, 18)[:ndim])
    scan, label = write(image, tmp_path / "scan.nii.gz"), write(boxes(image), tmp_path / "organs.nrrd")
    out = tmp_path / "out"
    model = tiny_models[ndim]
    succeed("deform", scan, "--label", label, "-o", out, "--model", model, "--level", 16, "--count", 2, "--steps", 5)

    stems = ["scan_000", "scan_001"]
    made = [f"{s}{k}" for s in stems for k in (".png", "_ddf.nii.gz", "_image.nii.gz", "_label.nii.gz")]
    assert names_in(out) == ["report.json", *made]
    report = report_of(out)
    assert report["model"] == model.stem
    for item, stem in zip(report["items"], stems, strict=True):
        assert {k: item[k] for k in ("image", "label", "ddf")} == {
            k: f"{stem}_{k}.nii.gz" for k in ("image", "label", "ddf")
        }
        assert (item["seed"], item["level"], item["steps"]) == (stems.index(stem), 16, 5)
        assert item["seconds"] > 0
        strict = ["nondiffeomorphic_fraction", "nondiffeomorphic_cells"]
        assert list(item["metrics"]) == [*METRICS, "certified_invertible", *strict]
        assert item["metrics"]["max_mm"] > item["metrics"]["mean_mm"] > 0.1
        longest = max(n * s for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True))
        assert item["metrics"]["mean_percent"] == pytest.approx(100 * item["metrics"]["mean_mm"] / longest)
        for kind in ("image", "label", "ddf"):
            made = sitk.ReadImage(str(out / item[kind]))
            assert made.GetSize() == image.GetSize()
            assert made.GetSpacing() == pytest.approx(image.GetSpacing())
            assert made.GetOrigin() == pytest.approx(image.GetOrigin())
        assert sitk.ReadImage(str(out / item["image"])).GetPixelID() == image.GetPixelID()
        assert set(np.unique(array_of(out / item["label"]))) == {0, 1, 3}
        assert not np.array_equal(array_of(out / item["image"]), array_of(scan))
        field = sitk.Cast(sitk.ReadImage(str(out / item["ddf"])), sitk.sitkVectorFloat64)
        again = sitk.Resample(image, image, sitk.DisplacementFieldTransform(field), sitk.sitkLinear, -1e4)
        inside = sitk.GetArrayFromImage(again) > -1e4
        difference = np.abs(sitk.GetArrayFromImage(again).astype(float) - array_of(out / item["image"]))[inside]
        assert difference.mean() < 0.005 * np.ptp(array_of(scan))


def test_equal_seeds_give_equal_files(succeed, tmp_path, tiny_models):
    image = scene()
    scan, label = write(image, tmp_path / "scan.nii.gz"), write(boxes(image), tmp_path / "label.nii.gz")
    options = [scan, "--label", label, "--model", tiny_models[3], "--level", 12]
    succeed("deform", *options, "-o", tmp_path / "three", "--seed", 5, "--count", 3)
    succeed("deform", *options, "-o", tmp_path / "last", "--seed", 7)
    assert [item["seed"] for item in report_of(tmp_path / "three")["items"]] == [5, 6, 7]
    for kind in ("image", "label", "ddf"):
        first, second, third = ((tmp_path / "three" / f"scan_{k:03d}_{kind}.nii.gz").read_bytes() for k in range(3))
        assert (tmp_path / "last" / f"scan_000_{kind}.nii.gz").read_bytes() == third
        assert len({first, second, third}) == 3


def test_paths_with_spaces_and_letters_of_any_language(succeed, tmp_path, tiny_models):
    image = scene((24, 22))
    folder = tmp_path / "Bilder für Ärzte"
    scan, label = write(image, folder / "scan é.nii.gz"), write(boxes(image), folder / "标签.nii.gz")
    model = folder / "modèle.safetensors"
    model.write_bytes(tiny_models[2].read_bytes())
    out = tmp_path / "Ergebnisse für Özgür"
    succeed("deform", scan, "--label", label, "--model", model, "-o", out, "--level", 3)
    item = report_of(out)["items"][0]
    assert item["image"] == "scan é_000_image.nii.gz"
    for kind in ("image", "label", "ddf"):
        assert array_of(out / item[kind]).shape[:2] == (22, 24)
    assert json.loads(succeed("evaluate", out / item["ddf"]))[0]["ddf"] == str(out / item["ddf"])
    data = write(scene((24, 22)), tmp_path / "Daten Ω" / "images" / "ä b.nii.gz").parents[1]
    succeed("synthesize", data, "--model", model, "-o", tmp_path / "Paare Ω", "--levels", "3:2")


def test_evaluate_agrees_with_the_report(succeed, tmp_path, tiny_models):
    scan, out = write(scene(), tmp_path / "scan.nii.gz"), tmp_path / "out"
    succeed("deform", scan, "-o", out, "--model", tiny_models[3], "--level", 40, "--count", 2, "--steps", 4)
    items = report_of(out)["items"]
    results = json.loads(succeed("evaluate", *(out / item["ddf"] for item in items)))
    assert len(results) == 2
    for result, item in zip(results, items, strict=True):
        assert result["ddf"] == str(out / item["ddf"])
        for name in METRICS:
            assert result["metrics"][name] == pytest.approx(item["metrics"][name], rel=1e-4, abs=1e-5), name


def test_progress_for_other_programs(tmp_path, tiny_models):
    scan, out = write(scene((24, 22)), tmp_path / "scan é.nii.gz"), tmp_path / "out"
    more = ["--model", tiny_models[2], "--level", 5, "--count", 2, "--progress", "json"]
    ended = run_process("deform", scan, "-o", out, *more)
    assert (ended.returncode, ended.stderr) == (0, "")
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    progress = [e for e in events if e["event"] == "progress"]
    assert [e["done"] for e in progress] == list(range(1, 13))
    assert progress[-1]["done"] == progress[-1]["total"]
    items = [{k: v for k, v in e.items() if k != "event"} for e in events if e["event"] == "item"]
    assert items == report_of(out)["items"]
    # Each version is announced before its figures, with what the report says of it.
    versions = [e for e in events if e["event"] == "version"]
    assert [e["event"] for e in events if e["event"] in ("version", "item")] == ["version", "item"] * 2
    for version, item in zip(versions, items, strict=True):
        both = {key: value for key, value in item.items() if key in version}
        assert both.items() <= version.items() and {"image", "ddf", "seed", "level", "seconds"} <= set(both)
        assert set(version) - set(both) == {"event", "model", "fit", "certified_invertible"}
        assert version["certified_invertible"] is True and version["fit"] == report_of(out)["fit"]
    assert events[-2]["event"] == "message"
    assert events[-1] == {"event": "end", "status": 0}


@pytest.mark.parametrize("name", [[], *([c] for c in COMMANDS)], ids=" ".join)
def test_help_shows_an_example(drdm, name):
    outcome = drdm(*name, "--help")
    assert outcome.status == 0
    assert "example:" in outcome.out
    assert "drdm " + (name[0] if name else "deform") in outcome.out.split("example:")[1]


# drdm augment, drdm synthesize

# Files and folders of every run, besides the images.
RUN_FILES = ["logs", "quality", "quality.html", "records", "report.json", "run.json"]


@pytest.fixture
def dataset(tmp_path):
    """Three cases; the second cannot be read and the third has no label."""
    folder = tmp_path / "data"
    for k in range(3):
        image = scene((40, 36 + k))
        write(image, folder / "images" / f"case{k}.nii.gz")
        if k < 2:
            write(boxes(image), folder / "labels" / f"case{k}.nii.gz")
    (folder / "images" / "case1.nii.gz").write_text("no image")
    return folder


def test_augment_makes_an_nnunet_dataset(succeed, tmp_path, tiny_models, dataset):
    out = tmp_path / "Dataset501"
    options = ["--model", tiny_models[2], "--levels", 4, 9, "--copies", 2]
    before = snapshot(dataset)
    succeed("augment", dataset, "-o", out, *options)
    assert snapshot(dataset) == before

    names = ["case0", *(f"case0_t{t:02d}_{c:03d}" for t in (4, 9) for c in range(2))]
    assert names_in(out) == [*("dataset.json", "imagesTr", "labelsTr"), *RUN_FILES]
    assert names_in(out / "imagesTr") == [f"{name}_0000.nii.gz" for name in names]
    assert names_in(out / "labelsTr") == [f"{name}.nii.gz" for name in names]
    described = json.loads((out / "dataset.json").read_text())
    assert described["channel_names"] == {"0": "image"}
    assert described["labels"]["background"] == 0
    # nnU-Net needs consecutive labels.
    assert described["labels"] == {"background": 0, "label_1": 1, "label_3": 2}
    assert described["original_label_values"] == {"2": 3}
    assert (described["numTraining"], described["file_ending"]) == (5, ".nii.gz")
    assert np.array_equal(array_of(out / "imagesTr" / "case0_0000.nii.gz"), array_of(dataset / "images/case0.nii.gz"))
    for name in names:
        image, label = out / "imagesTr" / f"{name}_0000.nii.gz", out / "labelsTr" / f"{name}.nii.gz"
        assert array_of(image).shape == array_of(label).shape
        assert set(np.unique(array_of(label))) <= {0, 1, 2}


def test_augment_reports_skipped_cases(drdm, tmp_path, tiny_models, dataset):
    outcome = drdm("augment", dataset, "-o", tmp_path / "out", "--model", tiny_models[2], "--levels", 4)
    assert outcome.status == 0
    failures = report_of(tmp_path / "out")["failures"]
    assert [text.split(":")[0] for text in failures] == ["case1", "case2"]
    assert "case1.nii.gz" in outcome.err and "no label" in outcome.err


@pytest.mark.parametrize("command", ["augment", "synthesize"])
def test_the_first_case_may_be_unreadable(succeed, tmp_path, tiny_models, dataset, command):
    (dataset / "images" / "case1.nii.gz").write_bytes((dataset / "images" / "case0.nii.gz").read_bytes())
    (dataset / "images" / "case0.nii.gz").write_text("no image")
    levels = ["--levels", "3" if command == "augment" else "3:2"]
    succeed(command, dataset, "-o", tmp_path / "out", "--model", tiny_models[2], *levels)
    report = report_of(tmp_path / "out")
    assert report["failures"][0].startswith("case0:")
    assert "case1" in {item["source"] for item in report["items"]}


def test_progress_of_a_dataset_ends_at_its_total(succeed, tmp_path, tiny_models, dataset):
    options = ["--model", tiny_models[2], "--levels", 4, 9, "--progress", "json"]
    output = succeed("augment", dataset, "-o", tmp_path / "out", *options)
    progress = [e for e in map(json.loads, output.splitlines()) if e["event"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"]


@pytest.mark.parametrize(("command", "levels"), [("augment", ["4", "4"]), ("synthesize", ["4:3", "4:3"])])
def test_no_result_overwrites_another(succeed, tmp_path, tiny_models, dataset, command, levels):
    """Give a level twice."""
    out = tmp_path / "out"
    succeed(command, dataset, "-o", out, "--model", tiny_models[2], "--levels", *levels)
    items = report_of(out)["items"]
    made = [item["image"] for item in items]
    assert len(set(made)) == len(made)
    images = [p for p in names_in(out / "imagesTr") if "_t04" in p]
    assert len(images) == len(items) * (1 if command == "augment" else 2)


def test_images_of_equal_names_get_different_names(drdm, tmp_path, tiny_models):
    for folder in ("a", "b"):
        write(scene((30, 28)), tmp_path / folder / "case.nii.gz")
    listed = tmp_path / "list.txt"
    listed.write_text("a/case.nii.gz\nb/case.nii.gz\n")
    outcome = drdm("synthesize", listed, "-o", tmp_path / "out", "--model", tiny_models[2], "--levels", "4:3")
    assert outcome.status == 0, outcome.err
    assert "is called 'case-2' in the results" in outcome.err
    assert {item["source"] for item in report_of(tmp_path / "out")["items"]} == {"case", "case-2"}


@pytest.mark.parametrize("command", ["augment", "synthesize"])
def test_file_names_in_the_report_are_relative_to_it(succeed, tmp_path, tiny_models, dataset, command):
    levels = "4" if command == "augment" else "4:3"
    succeed(command, dataset, "-o", tmp_path / "out", "--model", tiny_models[2], "--levels", levels)
    for item in report_of(tmp_path / "out")["items"]:
        for kind in ("image", "label", "ddf"):
            assert item[kind] is None or (tmp_path / "out" / item[kind]).is_file(), item[kind]


@pytest.mark.parametrize("ndim", [2, 3])
def test_synthesize_makes_pairs_and_their_field(succeed, tmp_path, tiny_models, ndim):
    image = scene((56, 52, 48)[:ndim])
    write(image, tmp_path / "data" / "imagesTr" / "case_0000.nii.gz")
    write(boxes(image), tmp_path / "data" / "labelsTr" / "case.nii.gz")
    out = tmp_path / "out"
    options = ["--model", tiny_models[ndim], "--levels", "20:12", "9:16", "--steps", 3]
    succeed("synthesize", tmp_path / "data", "-o", out, *options)

    names = ["case_t09-16_000", "case_t20-12_000"]
    run_files = sorted([*RUN_FILES, "splits.json"])
    assert names_in(out) == sorted(["dataset.json", "displacementsTr", "imagesTr", "labelsTr", "masksTr", *run_files])
    assert names_in(out / "masksTr") == names_in(out / "displacementsTr")
    assert names_in(out / "displacementsTr") == [f"{name}.nii.gz" for name in names]
    both = [f"{name}_{kind}.nii.gz" for name in names for kind in ("fixed", "moving")]
    assert names_in(out / "imagesTr") == names_in(out / "labelsTr") == both
    described = json.loads((out / "dataset.json").read_text())
    assert described["numPairs"] == len(described["training_paired_images"]) == 2
    assert described["tensorImageSize"] == f"{ndim}D"
    for pair in described["training_paired_images"]:
        moving, fixed, displacement = (sitk.ReadImage(str(out / pair[k])) for k in ("moving", "fixed", "displacement"))
        transform = sitk.DisplacementFieldTransform(sitk.Cast(displacement, sitk.sitkVectorFloat64))
        resampler = sitk.ResampleImageFilter()
        resampler.SetReferenceImage(fixed)
        resampler.SetTransform(transform)
        resampler.SetUseNearestNeighborExtrapolator(True)
        interior = (slice(6, -6),) * ndim
        fixed_array, moving_array = (sitk.GetArrayFromImage(i).astype(float)[interior] for i in (fixed, moving))
        again = sitk.GetArrayFromImage(resampler.Execute(moving)).astype(float)[interior]
        error = np.abs(again - fixed_array).mean() / np.ptp(sitk.GetArrayFromImage(image))
        assert error < 0.005
        assert error < 0.1 * np.abs(moving_array - fixed_array).mean() / np.ptp(sitk.GetArrayFromImage(image))
        for kind in ("moving_label", "fixed_label"):
            assert set(np.unique(array_of(out / pair[kind]))) <= {0, 1, 3}


# drdm models


@pytest.fixture
def weights_server(shared, tmp_path, monkeypatch):
    """The published cardiac weights, served from this computer."""
    folder = shared / "reference"
    if not (folder / "cmr_recresacnet.pth").is_file():
        pytest.skip("no reference weights")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def serve(file="cmr_recresacnet.pth", **changes):
        url = f"http://127.0.0.1:{server.server_port}/{file}"
        entry = replace(catalogue.find("published-cardiac-2d"), url=url, **changes)
        others = tuple(e for e in catalogue.CATALOGUE if e.name != entry.name)
        monkeypatch.setattr(catalogue, "CATALOGUE", (*others, entry))
        return server

    yield serve
    server.shutdown()
    server.server_close()


def test_models_are_listed(succeed):
    listed = succeed("models")
    assert listed == succeed("models", "list")
    for entry in DRDMLib.available_models():
        (line,) = [line for line in listed.splitlines() if line.startswith(entry.name + " ")]
        assert f"{entry.ndim}D" in line
        assert ("available" if entry.available else "download") in line


def test_fetch_downloads_once(succeed, tmp_path, weights_server):
    server = weights_server()
    succeed("models", "fetch", "published-cardiac-2d")
    assert names_in(tmp_path / "drdm-home") == ["published-cardiac-2d.pth"]
    (line,) = [line for line in succeed("models").splitlines() if line.startswith("published-cardiac-2d")]
    assert "available" in line
    described = json.loads(succeed("models", "info", "published-cardiac-2d"))
    assert (described["name"], described["ndim"], described["size"]) == ("published-cardiac-2d", 2, 256)
    assert described["licence"] == "Apache-2.0"
    server.shutdown()
    succeed("models", "fetch", "published-cardiac-2d")


def test_downloaded_and_own_models_are_removed_and_shipped_ones_are_not(drdm, succeed, tmp_path, tiny_models):
    home = tmp_path / "drdm-home"
    home.mkdir()
    (home / "published-cardiac-2d.pth").write_bytes(b"weights")
    own = catalogue.add_user_model(tiny_models[3], "mine")
    succeed("models", "remove", "published-cardiac-2d")
    assert "mine" in succeed("models") and own.removable
    succeed("models", "remove", "mine")
    assert not own.path.exists() and names_in(home / "models") == []
    for name, reason in (
        ("hippocampus-mr-3d", "is shipped with DRDM"),
        ("published-cardiac-2d", "nothing to remove"),
        ("mine", "no model 'mine'"),
    ):
        outcome = drdm("models", "remove", name)
        assert outcome.status == 2 and reason in outcome.err and len(outcome.err.splitlines()) == 1
    assert catalogue.find("hippocampus-mr-3d").available and not catalogue.find("hippocampus-mr-3d").removable


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, "git:" + "0" * 40])
def test_fetch_refuses_a_wrong_file(drdm, tmp_path, weights_server, digest):
    weights_server(digest=digest)
    outcome = drdm("models", "fetch", "published-cardiac-2d")
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1 and "wrong checksum" in outcome.err
    assert not (tmp_path / "drdm-home").exists() or names_in(tmp_path / "drdm-home") == []


def test_fetch_knows_the_digest_of_git(succeed, weights_server, shared):
    weights_server(digest=catalogue.digest_of(shared / "reference" / "cmr_recresacnet.pth", "git"))
    succeed("models", "fetch", "published-cardiac-2d")


def test_fetch_without_the_file_or_the_server(drdm, tmp_path, weights_server):
    server = weights_server("gone.pth")
    for server_runs in (True, False):
        if not server_runs:
            server.shutdown()
            server.server_close()
        outcome = drdm("models", "fetch", "published-cardiac-2d")
        assert outcome.status == 2
        assert len(outcome.err.splitlines()) == 1 and "could not be downloaded" in outcome.err
        with contextlib.suppress(FileNotFoundError):
            assert names_in(tmp_path / "drdm-home") == []


def test_info_of_a_model_file(succeed, tiny_models):
    described = json.loads(succeed("models", "info", tiny_models[3]))
    assert (described["ndim"], described["architecture"]) == (3, "compact")


# Requirements.

MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(DRDMLib.__path__, "DRDMLib.")
    if not m.name.startswith(("DRDMLib.cli", "DRDMLib.pictures", "DRDMLib.__main__"))
    and not m.name.endswith(("torchio_transform", "monai_transform", "nnunet_trainer"))
)


def test_importing_the_package_imports_no_large_library():
    heavy = ["torch", "rich", "matplotlib", "SimpleITK", "scipy", "tensorboard"]
    code = f"import sys, DRDMLib, DRDMLib.__main__; print([m for m in {heavy} if m in sys.modules])"
    ended = run_process(code=code, fresh=True)
    assert (ended.stdout.strip(), ended.stderr) == ("[]", "")


# In a process that has imported the extras, the library is imported anew without them.
WITHOUT_EXTRAS = """
import importlib, sys
extras = ("rich", "matplotlib", "tensorboard", "pandas", "nibabel", "PIL")
for name in list(sys.modules):
    if name.partition(".")[0] in (*extras, "DRDMLib") or name.startswith("torch.utils.tensorboard"):
        del sys.modules[name]
for name in extras:
    sys.modules[name] = None
for name in %r:
    importlib.import_module(name)
from DRDMLib.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_library_and_training_need_no_extras(tmp_path):
    """They need only the packages in Slicer, PyTorch and safetensors."""
    write(scene((20, 20)), tmp_path / "data" / "images" / "a.nii.gz")
    options = ["--ndim", 2, "--size", 16, "--width", 8, "--iterations", 1]
    run = tmp_path / "run"
    ended = run_process("train", tmp_path / "data", "-o", run, *options, code=WITHOUT_EXTRAS % (MODULES,))
    assert ended.returncode == 0, ended.stderr
    assert load_model_file(run / "model.safetensors", "cpu").ndim == 2


def test_warnings_say_what_they_are_about():
    from DRDMLib.cli.progress import JsonReporter

    lines = []
    reporter = JsonReporter(lines.append)
    reporter.warning("The model does not fit.", "fit")
    reporter.warning("The memory is full.")
    assert [json.loads(line) for line in lines] == [
        {"event": "warning", "text": "The model does not fit.", "about": "fit"},
        {"event": "warning", "text": "The memory is full."},
    ]
