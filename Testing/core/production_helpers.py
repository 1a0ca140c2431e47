"""Small datasets, runs over them in this process, and the files of a run."""

import json

from command_helpers import boxes, scene, snapshot, write

from DRDMLib.production.limits import Limits
from DRDMLib.production.plan import AUGMENT, SYNTHESIZE, RunSettings
from DRDMLib.production.run import RunRequest, produce
from DRDMLib.runtime.distributed import ProcessInfo
from DRDMLib.settings import DeformationSettings

# A strong random field and one step of recovery: fast, and all samples differ.
LEVELS = {AUGMENT: ((40,), (12,)), SYNTHESIZE: ((40, 20),)}


class RecordingReporter:
    """Keeps everything that a run reports."""

    def __init__(self):
        self.items, self.messages, self.steps = [], [], []

    def progress(self, task, done, total, **figures):
        self.steps.append((task, done, total))

    def item(self, **values):
        self.items.append(values)

    def message(self, text):
        self.messages.append(text)

    def warning(self, text, about=""):
        self.message(text)

    def close(self):
        pass


def write_cases(folder, names=("a", "b"), size=(22, 20, 18), labels=True):
    """Write a folder with images/ and labels/."""
    for number, name in enumerate(names):
        image = scene(tuple(n + number for n in size))
        write(image, folder / "images" / f"{name}.nii.gz")
        if labels:
            write(boxes(image), folder / "labels" / f"{name}.nii.gz")
    return folder


def settings_for(command, **more):
    deformation = DeformationSettings(
        **({"steps": 1} | {k: more.pop(k) for k in ("steps", "pose", "border", "bones") if k in more})
    )
    defaults = {"levels": LEVELS[command], "deformation": deformation, "limits": Limits(folded=None)}
    return RunSettings(command, **(defaults | more))


def make(dataset, folder, model, command=AUGMENT, *, process=None, resume=False, subject=None, **more):
    """Run a command over a dataset; return the run and its reporter."""
    reporter = RecordingReporter()
    request = RunRequest(
        dataset,
        folder,
        model=str(model),
        device=more.pop("device", "cpu"),
        process=process or ProcessInfo(),
        resume=resume,
        subject_pattern=subject,
    )
    return produce(request, settings_for(command, **more), reporter), reporter


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def records_of(folder):
    return {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted((folder / "records").glob("*.json"))}


def result(folder):
    """All content of a run's folder except times: path -> bytes."""
    found = {path.as_posix(): data for path, data in snapshot(folder).items() if path.parts[0] != "logs"}
    report = json.loads(found["report.json"])
    for item in report["items"]:
        item.pop("seconds")
    found["report.json"] = json.dumps(report)
    return found
