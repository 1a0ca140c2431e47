"""Runs whose results are altered, whose images change, whose records move or lie, and what a power cut leaves."""

import json
import shutil
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command_helpers import boxes, run_prepared, scene, write
from production_helpers import RecordingReporter, make, records_of, report_of, result, settings_for, write_cases

from DRDMLib.diffusion.seeds import Purpose, derived_seed, random_generator, sample_seed
from DRDMLib.errors import ImageError, OutputError, SettingError
from DRDMLib.production import run_folder
from DRDMLib.production.plan import AUGMENT, SYNTHESIZE, seed_of
from DRDMLib.production.regenerate import regenerate
from DRDMLib.production.run import RunRequest, produce
from DRDMLib.production.verify import verify
from DRDMLib.runtime.distributed import ProcessInfo

SMALL = (14, 13, 12)


@pytest.fixture
def data(tmp_path):
    return write_cases(tmp_path / "data", size=SMALL)


def flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


# Cuts the power at the LEFT-th time that a file in FOLDER gets its name: what was not synced is lost.
POWER_CUT = """
import contextlib, signal, threading
left, synced, fsync, replace = LEFT, {}, os.fsync, os.replace
# Several threads write files. While one cuts the power, none of the others may rename the files that it has listed.
lock = threading.Lock()
def noted(descriptor):
    fsync(descriptor)
    state = os.fstat(descriptor)
    synced[state.st_ino] = state.st_size
def cut_off(path):
    # The others may still remove incomplete files.
    with contextlib.suppress(FileNotFoundError):
        state = os.stat(path)
        if synced.get(state.st_ino) != state.st_size and not BEFORE.get(path) == state.st_mtime_ns:
            os.truncate(path, 0)
def cut(source, target, **more):
    global left
    with lock:
        replace(source, target, **more)
        left -= str(target).startswith(FOLDER)
        if left == 0:
            for at, _, names in os.walk(FOLDER):
                for name in names:
                    cut_off(os.path.join(at, name))
            os.kill(os.getpid(), signal.SIGKILL)
BEFORE = {os.path.join(at, name): os.stat(os.path.join(at, name)).st_mtime_ns
          for at, _, names in os.walk(FOLDER) for name in names}
os.fsync, os.replace = noted, cut
"""
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and fork")


def power_cut(folder, changes):
    return f"FOLDER, LEFT = {str(folder)!r}, {changes}\n{POWER_CUT}"


def empty_files(folder):
    return [
        path
        for path in folder.rglob("*")
        if path.suffix in (".gz", ".json", ".png", ".pt", ".safetensors")
        and path.stat().st_size == 0
        and not path.name.startswith(".")
    ]


@posix
def test_a_power_cut_costs_no_finished_file(data, tmp_path, tiny_models):
    whole, broken = tmp_path / "whole" / "set", tmp_path / "broken" / "set"
    options = ["--levels", "40", "--steps", "1", "--max-folded", "1", "--model", tiny_models[3], "--device", "cpu"]
    resumed = ["augment", data, "-o", broken, *options, "--resume"]
    cuts = [(power_cut(broken, changes), resumed) for changes in (1, 4, 9)]
    statuses, text = run_prepared(("", ["augment", data, "-o", whole, *options]), *cuts)
    assert statuses == [0, -9, -9, -9] and not empty_files(broken), text
    statuses, text = run_prepared(("", resumed))
    assert statuses == [0] and "damaged" not in text and "made again" not in text, text
    assert result(broken) == result(whole)


@posix
def test_a_power_cut_costs_no_training(data, tmp_path):
    run = tmp_path / "run"
    words = ["train", data, "-o", run, "--size", 16, "--width", 8, "--batch", 1, "--device", "cpu", "--resume"]
    words += ["--iterations", 3, "--checkpoint-minutes", 0.0000001]
    statuses, text = run_prepared(*[(power_cut(run, changes), words) for changes in (1, 2, 6)])
    assert statuses == [-9, -9, -9] and not empty_files(run), text
    statuses, text = run_prepared(("", words))
    assert statuses == [0] and "damaged" not in text, text


def test_a_run_with_an_empty_state_file_goes_on(data, tmp_path, tiny_models):
    folder = tmp_path / "out"
    make(data, folder, tiny_models[3])
    before = result(folder)
    (folder / "run.json").write_bytes(b"")
    (folder / "labelsTr" / "a_t40_000.nii.gz").unlink()
    with pytest.raises(SettingError, match="already contains a run"):
        make(data, folder, tiny_models[3])
    with pytest.raises(SettingError, match="is damaged, and 'a' was made with other settings"):
        make(data, folder, tiny_models[3], seed=1, resume=True)
    assert verify(folder)[0].endswith("run.json' is damaged.")
    _, reporter = make(data, folder, tiny_models[3], resume=True)
    assert any("run.json' is damaged, as after a power cut" in text for text in reporter.messages)
    assert len(reporter.items) == 1 and result(folder) == before


def test_altered_results_are_noticed_and_made_again(data, tmp_path, tiny_models, drdm):
    folder = tmp_path / "out"
    make(data, folder, tiny_models[3])
    before = result(folder)
    assert verify(folder) == [] and drdm("verify", folder).status == 0
    label = folder / "labelsTr" / "a_t40_000.nii.gz"
    label.write_bytes(label.read_bytes()[:-9])
    flip(folder / "imagesTr" / "b_0000.nii.gz")
    (folder / "quality" / "a_t12_000.png").unlink()
    for name in ("dataset.json", "quality.html"):
        flip(folder / name)
    record = folder / "records" / "b_t40_000.json"
    record.write_text(record.read_text(encoding="utf-8").replace('"border": "auto"', '"border": "open"'), "utf-8")
    damaged = verify(folder)
    names = ("a_t40_000.nii.gz' has", "b_0000.nii.gz' has", "a_t12_000.png' is", "dataset.json' has", "y.html' has")
    assert len(damaged) == 6 and all(any(name in text for text in damaged) for name in names), damaged
    ended = drdm("verify", folder)
    assert ended.status == 2 and len(ended.err.splitlines()) == 7 and "6 of the files" in ended.err
    _, reporter = make(data, folder, tiny_models[3], resume=True)
    assert any("y.html" not in text and "b_0000.nii.gz' and 1 more" in text for text in reporter.messages), (
        reporter.messages
    )
    assert sorted(item["name"] for item in reporter.items) == ["a_t12_000", "a_t40_000", "b_t40_000"]
    assert result(folder) == before and verify(folder) == []


def test_a_report_that_does_not_agree_with_the_records(data, tmp_path, tiny_models):
    folder = tmp_path / "out"
    make(data, folder, tiny_models[3])
    report = report_of(folder)
    report["items"][0]["seed"] += 1
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (text,) = verify(folder)
    assert "report.json' does not list" in text
    (folder / "report.json").write_bytes(b"")
    assert any("report.json' is damaged" in text for text in verify(folder))
    with pytest.raises(OutputError, match="not the folder of a run"):
        verify(data)


def test_a_run_that_is_not_finished_is_not_verified(data, tmp_path, tiny_models):
    make(data, tmp_path / "out", tiny_models[3], process=ProcessInfo(0, 2))
    with pytest.raises(OutputError, match="is not finished"):
        verify(tmp_path / "out")


def test_an_image_that_changes_while_the_run_goes_on(tmp_path, tiny_models):
    data, folder = write_cases(tmp_path / "data", ("a", "b", "c", "d"), size=SMALL), tmp_path / "out"
    kept = (data / "labels" / "d.nii.gz").read_bytes()
    changed = tmp_path / "changed.nii.gz"
    write(sitk.ReadImage(str(data / "labels" / "d.nii.gz")) == 1, changed)

    class Disturbing(RecordingReporter):
        def progress(self, task, done, total, **figures):
            # The plan is made, and only the first case has been read.
            if task == AUGMENT and changed.exists():
                # At once: the run may be reading the file, which must not be half written then.
                changed.replace(data / "labels" / "d.nii.gz")

    request = RunRequest(data, folder, model=str(tiny_models[3]), device="cpu")
    run = produce(request, settings_for(AUGMENT, levels=((40,),)), Disturbing())
    assert len(run.failures()) == 1 and "'d' have changed since the run began" in run.failures()[0]
    run, _ = make(data, folder, tiny_models[3], levels=((40,),), resume=True)
    assert len(run.failures()) == 1
    (data / "labels" / "d.nii.gz").write_bytes(kept)
    run, _ = make(data, folder, tiny_models[3], levels=((40,),), resume=True)
    assert not run.failures()


def test_an_image_that_changes_between_two_shares(tmp_path, tiny_models):
    data, folder = write_cases(tmp_path / "data", ("a", "b", "c"), size=SMALL), tmp_path / "out"
    make(data, folder, tiny_models[3], process=ProcessInfo(0, 2))
    for name in "abc":
        write(scene((14, 13, 15)), data / "images" / f"{name}.nii.gz")
        write(boxes(scene((14, 13, 15))), data / "labels" / f"{name}.nii.gz")
    run, _ = make(data, folder, tiny_models[3], process=ProcessInfo(1, 2))
    cases = {run.plan.cases[task.case].name for task in run.plan.share(ProcessInfo(1, 2))}
    assert len(run.failures()) == len(cases) and all("have changed" in text for text in run.failures())


def test_an_image_that_could_not_be_read_may_be_repaired(data, tmp_path, tiny_models):
    kept = (data / "images" / "b.nii.gz").read_bytes()
    (data / "images" / "b.nii.gz").write_text("no image")
    run, _ = make(data, tmp_path / "out", tiny_models[3], SYNTHESIZE)
    assert len(run.failures()) == 1
    (data / "images" / "b.nii.gz").write_bytes(kept)
    run, _ = make(data, tmp_path / "out", tiny_models[3], SYNTHESIZE, resume=True)
    assert not run.failures()


def test_a_record_is_used_from_another_folder(tmp_path, tiny_models, monkeypatch):
    """The run is started with relative paths, and the folder that has both is moved."""
    project, model = tmp_path / "project", str(tiny_models[3])
    data = write_cases(project / "data", ("a",), size=SMALL)
    monkeypatch.chdir(project)
    make(data.relative_to(project), (project / "out").relative_to(project), model, levels=((40,),))
    monkeypatch.chdir(tmp_path)
    name = "out/records/a_t40_000.json"
    assert regenerate(project / name, tmp_path / "1", model=model).differences == []
    project.rename(tmp_path / "moved")
    again = regenerate(tmp_path / "moved" / name, tmp_path / "2", model=model)
    assert again.differences == [] and set(again.compared) == {"image", "label", "thumbnail", "layers"}
    # A record of an older version has the path as it was given, relative to a folder that is not known.
    record = json.loads((tmp_path / "moved" / name).read_text(encoding="utf-8"))
    record["source"] |= {"files": {kind: f"data/{kind}s/a.nii.gz" for kind in ("image", "label")}}
    del record["source"]["relative"], record["sizes"]
    (tmp_path / "moved" / name).write_text(json.dumps(record), encoding="utf-8")
    assert regenerate(tmp_path / "moved" / name, tmp_path / "3", model=model).differences == []
    # The images lie elsewhere, beside others of the same names.
    (tmp_path / "moved" / "data").rename(tmp_path / "archive")
    write(scene((9, 9, 9)), tmp_path / "archive" / "a.nii.gz")
    with pytest.raises(ImageError, match="--images"):
        regenerate(tmp_path / "moved" / name, tmp_path / "4", model=model)
    again = regenerate(tmp_path / "moved" / name, tmp_path / "5", model=model, images=tmp_path / "archive")
    assert again.differences == []


def test_nothing_is_identical_without_a_comparison(data, tmp_path, tiny_models, drdm):
    make(data, tmp_path / "out", tiny_models[3])
    path = tmp_path / "out" / "records" / "a_t40_000.json"
    words = ["regenerate", path, "--model", tiny_models[3], "-o"]
    assert "identical to those of the record" in drdm(*words, tmp_path / "1").err
    record = json.loads(path.read_text(encoding="utf-8"))
    for digests in ({}, {"image": record["digests"]["image"]}):
        path.write_text(json.dumps(record | {"digests": digests}), encoding="utf-8")
        ended = drdm(*words, tmp_path / f"{len(digests)} digests")
        assert ended.status == 2 and "is not known" in ended.err and "label" in ended.err


def test_a_record_cannot_name_other_files(data, tmp_path, tiny_models):
    """Neither into the quality page, nor as the files of a sample; nor can it take all of the memory."""
    folder = tmp_path / "set" / "out"
    make(data, folder, tiny_models[3])
    before = result(folder)
    secret = tmp_path / "secret.png"
    shutil.copy(folder / "quality" / "a_t40_000.png", secret)
    flip(secret)
    path = folder / "records" / "a_t40_000.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    (folder / "report.json").unlink()
    for thumbnail in (str(secret), "../../secret.png", "run.json", "quality/link.png"):
        path.write_text(json.dumps(record | {"files": record["files"] | {"thumbnail": thumbnail}}), "utf-8")
        make(data, folder, tiny_models[3], resume=True)
        page = (folder / "quality.html").read_text(encoding="utf-8")
        assert page.count("data:image/png") <= 4
        assert result(folder) == before or thumbnail == "run.json"
    path.write_text(json.dumps(record | {"copy": 10**15}), "utf-8")
    with pytest.raises(OutputError, match="no valid 'copy'"):
        regenerate(path, tmp_path / "again", model=str(tiny_models[3]))


def test_seeds_of_samples():
    """Two samples with the same seed of 31 bits have different ones of 128 bits, as do all purposes."""
    first, second = ("c0", (40,), 3036), ("c0", (40,), 76107)
    equal = [pair for pair in (first, second) if seed_of(0, *pair, 0) == seed_of(0, *first, 0)]
    made = {
        sample_seed(0, f"case{k}", (40, 20), copy, attempt) for k in range(9) for copy in (0, 1) for attempt in (0, 1)
    }
    assert len(made) == 36 and all(2**128 <= seed < 2**129 for seed in made)
    assert len({sample_seed(0, *pair, 0) for pair in equal}) == len(equal)
    seed = sample_seed(0, "a", (40,), 0, 0)
    # Fixed for all time, because records depend on it.
    assert seed == 496102789744411593386889283231316605200
    others = [derived_seed(seed, purpose, number) for purpose in list(Purpose)[1:] for number in (1, 2)]
    assert len({seed, *others}) == 1 + len(others) == 15 and derived_seed(seed, Purpose.REGION, 0) == seed
    assert derived_seed(5, Purpose.SECOND) == 5 + 2**31


def test_random_numbers_of_a_sample_have_all_bits_of_its_seed():
    """PyTorch's generator starts from 19,937 bits of NumPy's SeedSequence; plain seeds are PyTorch's own."""
    seed = sample_seed(0, "a", (40,), 0, 0)
    drawn = torch.randint(0, 2**20, (1500,), generator=random_generator(seed)).numpy()
    twister = np.random.MT19937()
    key = np.random.SeedSequence(seed).generate_state(624)
    twister.state = twister.state | {"state": {"key": key, "pos": 624}}
    assert (drawn == twister.random_raw(1500) % 2**20).all()
    plain = torch.randn(9, generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.randn(9, generator=random_generator(7)), plain)
    # PyTorch itself ignores these bits on a CPU.
    far = [torch.randn(9, generator=random_generator(seed ^ 1 << bit)) for bit in (0, 33, 65, 97, 127)]
    assert not any(torch.equal(one, far[0]) for one in far[1:])


def test_a_run_of_an_older_version_keeps_its_seeds(data, tmp_path, tiny_models):
    folder = tmp_path / "out"
    make(data, folder, tiny_models[3], seed_scheme="")
    assert "seed_scheme" not in json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]
    record = records_of(folder)["a_t40_000"]
    assert "seed_scheme" not in record and record["seed"] == seed_of(0, "a", (40,), 0, 0) < 2**31
    again = regenerate(folder / "records" / "a_t40_000.json", tmp_path / "again", model=str(tiny_models[3]))
    assert again.differences == []
    before = result(folder)
    (folder / "records" / "a_t40_000.json").unlink()
    make(data, folder, tiny_models[3], resume=True)
    assert result(folder) == before
    make(data, tmp_path / "new", tiny_models[3])
    record = records_of(tmp_path / "new")["a_t40_000"]
    assert record["seed_scheme"] == "seedsequence-128" and record["seed"] == sample_seed(0, "a", (40,), 0, 0)
    path = folder / "records" / "a_t40_000.json"
    path.write_text(json.dumps(record | {"seed_scheme": "of the future"}), encoding="utf-8")
    with pytest.raises(OutputError, match="newer version"):
        regenerate(path, tmp_path / "never", model=str(tiny_models[3]))


# Sends itself five signals when it first changes something in the folder, and at three further changes.
STORM = """
import signal
storms = 4
def watch(event, arguments):
    global storms
    if event in ("os.mkdir", "os.remove", "os.rmdir", "os.rename") and str(arguments[0]).startswith(FOLDER) and storms:
        storms -= 1
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
sys.addaudithook(watch)
"""
# Sends signals with each record that gets its name.
LATE_STORM = STORM.replace('("os.mkdir", "os.remove", "os.rmdir", "os.rename")', '("os.rename",)').replace(
    "arguments[0]).startswith(FOLDER)", "arguments[1]).startswith(FOLDER + '/records')"
)


@posix
def test_many_terminations_do_not_stop_the_cleanup(data, tmp_path, tiny_models):
    first, late = tmp_path / "first", tmp_path / "late"
    options = ["--levels", "40", "--steps", "1", "--model", tiny_models[3], "--device", "cpu"]
    commands = [
        (f"FOLDER = {str(folder)!r}\n{storm}", ["augment", data, "-o", folder, *options])
        for folder, storm in ((first, STORM), (late, LATE_STORM))
    ]
    statuses, text = run_prepared(*commands)
    assert statuses == [130, 130] and "Traceback" not in text, text
    assert not first.exists()
    assert list((late / "records").iterdir()) and not list(late.rglob(".*.partial"))


def test_a_link_in_the_place_of_a_lock_is_not_followed(drdm, tmp_path, tiny_models):
    image = write(scene((24, 22)), tmp_path / "scan.nii.gz")
    precious = tmp_path / "precious"
    precious.write_text("years of work", encoding="utf-8")
    for name in (".drdm.lock", ".drdm-1-of-1.lock", ".drdm-probe"):
        folder = tmp_path / f"out{name}"
        folder.mkdir()
        try:
            (folder / name).symlink_to(precious)
        except OSError:
            pytest.skip("links are not allowed here")
        drdm("deform", image, "-o", folder, "--level", 4, "--model", tiny_models[2])
        assert precious.read_text(encoding="utf-8") == "years of work"
    assert run_folder.BEGINNINGS
