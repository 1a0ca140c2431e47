"""Small datasets, runs over them in this process, and what a run has left behind."""

import json

from command_helpers import boxes, scene, snapshot, write

from DRDMLib.production.limits import Limits
from DRDMLib.production.plan import AUGMENT, SYNTHESIZE, Settings
from DRDMLib.production.run import produce
from DRDMLib.runtime.distributed import Place

# A strong random field and one step of recovery: quick, and all samples differ.
LEVELS = {AUGMENT: ((40,), (12,)), SYNTHESIZE: ((40, 20),)}


class Heard:
    """What a run has told."""

    def __init__(self):
        self.items, self.messages, self.steps = [], [], []

    def progress(self, task, done, total, **figures):
        self.steps.append((task, done, total))

    def item(self, **values):
        self.items.append(values)

    def message(self, text):
        self.messages.append(text)


def write_cases(folder, names=("a", "b"), size=(22, 20, 18), labels=True):
    """A folder with images/ and labels/."""
    for number, name in enumerate(names):
        image = scene(tuple(n + number for n in size))
        write(image, folder / "images" / f"{name}.nii.gz")
        if labels:
            write(boxes(image), folder / "labels" / f"{name}.nii.gz")
    return folder


def settings_for(command, **more):
    return Settings(command, **({"levels": LEVELS[command], "steps": 1, "limits": Limits(folded=None)} | more))


def make(dataset, folder, model, command=AUGMENT, *, place=None, resume=False, subject=None, device="cpu", **more):
    """Run it; returns the run and what it told."""
    heard = Heard()
    run = produce(
        dataset,
        folder,
        settings_for(command, **more),
        heard,
        model=str(model),
        device=device,
        place=place or Place(),
        resume=resume,
        subject_pattern=subject,
    )
    return run, heard


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def records_of(folder):
    return {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted((folder / "records").glob("*.json"))}


def result(folder):
    """Everything in a run's folder but how long it took: path -> bytes."""
    found = {path.as_posix(): data for path, data in snapshot(folder).items() if path.parts[0] != "logs"}
    report = json.loads(found["report.json"])
    for item in report["items"]:
        item.pop("seconds")
    found["report.json"] = json.dumps(report)
    return found
