"""A run over a dataset, from its first look at the folder to its last word."""

from __future__ import annotations

from pathlib import Path

from ..io import datasets
from ..runtime.device import choose_device
from ..runtime.distributed import Place
from . import run_folder
from .closing import close_run
from .opening import open_run
from .plan import Settings, make_plan
from .report import interrupted
from .run_state import Listener, Run
from .work import Work


def produce(
    dataset: str | Path,
    folder: str | Path,
    settings: Settings,
    listener: Listener,
    *,
    model: str | None = None,
    device: str = "auto",
    place: Place | None = None,
    resume: bool = False,
    subject_pattern: str | None = None,
) -> Run:
    """Make what ``settings`` ask for from every case of a dataset, or go on with it.

    Args:
        dataset: as :func:`DRDMLib.io.datasets.find_cases` takes it.
        folder: new or empty, or that of an interrupted run with the same settings.
        listener: is told how it goes.
        model: name or path; by default the best one for the first image.
        place: this process among several.
        resume: go on with the run that the folder holds. Several processes join one run without it.

    Raises:
        DRDMError: nothing can be done with this input, these settings, or this folder; what is complete stays.
    """
    place, folder = place or Place(), Path(folder)
    plan = make_plan(settings, datasets.find_cases(dataset, subject_pattern))
    device = place.device(device)
    choose_device(device)
    # Refused before anything is touched.
    run_folder.earlier_run(folder, resume=resume or place.world > 1)

    def opening() -> Run:
        return open_run(plan, Path(dataset), folder, model, device, place, resume, listener)

    with run_folder.share_of_folder(folder, place, opening) as run:
        try:
            Work(run).do()
        except BaseException:
            interrupted(run)
            raise
    with run_folder.alone(folder):
        complete = close_run(run)
    for text in run.failures() if complete else []:
        listener.message(f"Left out: {text}")
    if run.clock.samples:
        listener.message(run.clock.sentence(run.gpu_busy))
    return run
