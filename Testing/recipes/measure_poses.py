"""Measure the poses of the shipped models' training subjects, and write them to ``Resources/Models/poses.json``.

    python Testing/recipes/measure_poses.py DATA

DATA is the folder with the data sets of ``train_models.py``. A model whose training subjects are fewer than ten has
none, such as the two of hearts (five patients).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from training_images import HOLD_OUT, HOLD_OUT_HEADS

from DRDMLib.io.datasets import Case, find_cases
from DRDMLib.io.resources import resource
from DRDMLib.models.population import TABLE
from DRDMLib.production.poses import poses_of_cases
from DRDMLib.training.data import split


def training_cases(data: Path) -> dict[str, list[Case]]:
    """Return the subjects that each model was trained on."""
    return {
        "hippocampus-mr-3d": split(find_cases(data / "hippocampus"), HOLD_OUT)[0],
        "brain-t1-3d": split(find_cases(data / "brain_ixi"), HOLD_OUT_HEADS)[0],
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    table = {}
    for name, cases in training_cases(parser.parse_args().data).items():
        spread = poses_of_cases(cases)
        assert spread is not None
        print(f"{name}: {spread.words()}")
        table[name] = spread.to_dict()
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in table.items())
    resource("Models", TABLE).write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
