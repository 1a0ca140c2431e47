"""Make the case of known truth that comes with DRDM, of the drawn sample, from a field that a model has made.

    drdm challenge phantom -o CASES --recipe medium --seed 2026 --device cpu
    python Resources/Challenge/make_reference.py CASES

The first command computes with a network, whose last bits differ between machines, so its result is shipped. Every
second vector of its field is kept, in steps of 1/1024 mm, which makes the file small; what is left is the truth. It is
proven to be invertible again.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from DRDMLib.challenge.cases import Scan, write_case
from DRDMLib.challenge.changes import RECIPES
from DRDMLib.invertibility.certificate import certify_saved
from DRDMLib.io.images import read_image, read_label
from DRDMLib.io.resources import resource

NAME = "reference"
STEP_MM = 1 / 1024


def thinned(field: sitk.Image) -> sitk.Image:
    """Keep every second vector along each axis, rounded; the last one also covers the end."""
    vectors = np.pad(sitk.GetArrayFromImage(field), [(0, 1)] * 3 + [(0, 0)], mode="edge")[::2, ::2, ::2]
    kept = sitk.GetImageFromArray((np.round(vectors / STEP_MM) * STEP_MM).astype(np.float32), isVector=True)
    kept.SetOrigin(field.GetOrigin())
    kept.SetDirection(field.GetDirection())
    kept.SetSpacing([2 * s for s in field.GetSpacing()])
    return kept


def main() -> None:
    """Write ``pairs`` and ``truth`` beside this file."""
    made = next((Path(sys.argv[1]) / "truth").iterdir())
    record = json.loads((made / "case.json").read_text(encoding="utf-8"))
    field = thinned(sitk.ReadImage(str(made / "field.nii.gz")))
    if not certify_saved(field).certified:
        raise SystemExit("The thinned field is not proven to be invertible; take another seed.")

    def write_field(path: Path) -> Path:
        sitk.WriteImage(field, str(path), useCompression=True, compressionLevel=9)
        return path

    image = read_image(resource("Sample", "sample.nii.gz"))
    label = read_label(resource("Sample", "sample_label.nii.gz"), image)
    kept = ("format", "recipe", "level", "pose", "seed", "model", "software", "device", "source")
    context = {"name": NAME} | {key: record[key] for key in kept}
    here = Path(__file__).parent
    for folder in ("pairs", "truth"):
        shutil.rmtree(here / folder, ignore_errors=True)
    recipe = RECIPES[record["recipe"]["name"]]
    write_case(here, NAME, Scan(NAME, image, label), recipe, record["seed"], context, write_field)


if __name__ == "__main__":
    main()
