"""Measure the poses of the people of the shipped models, and write them to ``Resources/Models/poses.json``.

    python Testing/recipes/measure_poses.py DATA

DATA is the folder with the data sets of ``train_models.py``. Those of a model of one anatomy are measured on its
training subjects; those of hearts, of which there are only five, on every second patient of ACDC at the end of
diastole. The models for scans of any kind have the mean of the covariances of all kinds of which there are ten scans.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from training_images import HOLD_OUT, HOLD_OUT_HEADS

from DRDMLib.diffusion.poses import PoseSpread
from DRDMLib.io.datasets import Case, find_cases
from DRDMLib.io.resources import resource
from DRDMLib.models.population import TABLE
from DRDMLib.production.poses import poses_of_cases
from DRDMLib.training.data import split

HEARTS = 2
MODELS = {
    "hippocampus-mr-3d": ("hippocampi",),
    "brain-t1-3d": ("heads",),
    "cardiac-mr-2d": ("hearts",),
    "heart-region-2d": ("hearts",),
    "general-3d": ("hippocampi", "heads", "hearts", "prostates"),
    "general-2d": ("hippocampi", "heads", "hearts", "prostates"),
}


def people(data: Path) -> dict[str, list[Case]]:
    """Return the subjects of each kind."""
    hearts = [case for case in find_cases(data / "cardiac_acdc") if case.name.endswith("_ED")]
    return {
        "hippocampi": split(find_cases(data / "hippocampus"), HOLD_OUT)[0],
        "heads": split(find_cases(data / "brain_ixi"), HOLD_OUT_HEADS)[0],
        "hearts": split(hearts, HEARTS)[0],
        "prostates": find_cases(data / "prostate_mr"),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    spreads = {}
    for kind, cases in people(parser.parse_args().data).items():
        spread = poses_of_cases(cases)
        assert spread is not None
        print(f"{kind}: {spread.words()}", flush=True)
        spreads[kind] = spread
    table = {}
    for name, kinds in MODELS.items():
        several = [spreads[kind] for kind in kinds]
        mean = PoseSpread.of(np.mean([one.matrix for one in several], axis=0), sum(one.scans for one in several))
        print(f"{name}: {mean.words()}")
        table[name] = mean.to_dict()
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in table.items())
    resource("Models", TABLE).write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
