"""NaN, infinite and negative numbers are refused where they make no sense: options, settings, environment variables."""

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import boxes, scene, snapshot, write

import DRDMLib
from DRDMLib.errors import ImageError, SettingError
from DRDMLib.io.files import to_json, write_text
from DRDMLib.io.images import require_scalar_image
from DRDMLib.pages import fill_page
from DRDMLib.production.limits import Limits
from DRDMLib.production.plan import SYNTHESIZE, RunSettings
from DRDMLib.runtime.distributed import ProcessInfo, current_process


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("augment", ["--max-folded", "nan"]),
        ("augment", ["--max-folded", "-0.1"]),
        ("augment", ["--max-folded", "2"]),
        ("augment", ["--min-mm", "inf"]),
        ("augment", ["--min-mm", "-1"]),
        ("augment", ["--max-mm", "nan"]),
        ("augment", ["--labels-inside", "1.5"]),
        ("augment", ["--pose", "nan"]),
        ("augment", ["--adapt", "nan"]),
        ("augment", ["--share", "0/0"]),
        ("synthesize", ["--split", "inf", "0", "0"]),
        ("synthesize", ["--split", "nan", "0.1", "0.1"]),
        ("synthesize", ["--split", "1", "-1", "0.1"]),
        ("synthesize", ["--split", "0", "0", "0"]),
        ("synthesize", ["--region", *["nan"] * 6]),
        ("synthesize", ["--region", *"010101", "--margin", "inf"]),
        ("challenge", ["--noise", "nan"]),
        ("challenge", ["--crop", "inf"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_options(drdm, tmp_path, tiny_models, command, options):
    image = scene((24, 22))
    write(image, tmp_path / "data" / "images" / "a.nii.gz")
    write(boxes(image), tmp_path / "data" / "labels" / "a.nii.gz")
    given = tmp_path / "data" / ("images/a.nii.gz" if command == "challenge" else "")
    before = snapshot(tmp_path)
    outcome = drdm(command, given, "-o", tmp_path / "out", "--model", tiny_models[2], *options)
    assert outcome.status == 2 and len(outcome.err.splitlines()) == 1 and "Traceback" not in outcome.err, outcome.err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("wrong", [{"folded": -1.0}, {"least_mm": np.nan}, {"most_mm": np.inf}, {"inside": 2.0}])
def test_limits(wrong):
    with pytest.raises(SettingError, match="out of range"):
        Limits(**wrong)
    with pytest.raises(SettingError, match="shares"):
        RunSettings(SYNTHESIZE, ((3, 3),), split=(np.inf, 0.0, 0.0))


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "abc", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "-2", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "x"},
        {"SLURM_NTASKS": "1e3", "SLURM_PROCID": "0"},
        {"WORLD_SIZE": "2", "RANK": "nan"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "-1"},
        {"WORLD_SIZE": "2", "RANK": "0", "TORCHELASTIC_RESTART_COUNT": "x"},
    ],
    ids=str,
)
def test_environment_of_launchers(monkeypatch, variables):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match="environment variables"):
        current_process()
    # A batch script of SLURM without srun is a single process.
    for name in variables:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_NTASKS", "abc")
    assert current_process() == ProcessInfo()


# Voxels.


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("lowest", [0.0, -1.0])
@pytest.mark.parametrize("top", [1.6e38, 3.4e38, 1e300])
def test_large_voxels_are_right_or_refused(tiny_models, ndim, lowest, top):
    plain = scene((26, 22, 18)[:ndim], sitk.sitkFloat32)
    array = sitk.GetArrayFromImage(plain).astype(np.float64)
    array = lowest + (1 - lowest) * (array - array.min()) / np.ptp(array)

    def image(values, kind):
        made = sitk.GetImageFromArray(values.astype(kind))
        made.CopyInformation(plain)
        return made

    kind = np.float32 if top < 3.5e38 else np.float64
    large = image(array * top, kind)
    if top * (1 - lowest) > 3.4028234e38:
        with pytest.raises(ImageError, match="range of values"):
            require_scalar_image(large)
        return
    made = []
    for one in (require_scalar_image(large), image(array, np.float64)):
        result = DRDMLib.deform(one, str(tiny_models[ndim]), 20, seed=1, steps=2, device="cpu")
        made.append(sitk.GetArrayFromImage(result.warp(one)).astype(np.float64))
    assert np.isfinite(made[0]).all() and np.abs(made[0] / top - made[1]).max() < 1e-6


# Pages and reports.


def test_figures_that_json_does_not_have(tmp_path):
    values = {"a": [float("nan"), 1.5, (float("-inf"),)], "b": {"c": float("inf"), "d": "NaN"}}
    assert to_json(values) == '{"a":[null,1.5,[null]],"b":{"c":null,"d":"NaN"}}'
    page = fill_page("DRDMLib.challenge", "score_page.html", "x", values)
    assert '"c":null' in page and "Infinity" not in page.partition('id="data">')[2].partition("</script>")[0]
    path = write_text(tmp_path / "a.json", to_json({"unused": ["b\udcff.abc"]}))
    assert path.read_bytes() == b'{"unused":["b\\udcff.abc"]}'
