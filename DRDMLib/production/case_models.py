"""The model of each case of a run: the one that the user named, or the one that fits the case best."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..errors import ModelError
from ..models.catalogue import digest_of, find, load_model, resolve
from ..models.choice import Candidate, choose_model, frozen_candidates, named_choice
from ..models.fit import Fit
from ..models.model import Model
from . import records
from .adapted import same_adapted_model
from .plan import Plan

# Cases that a sentence names.
_NAMED = 5


@dataclass(frozen=True)
class CaseModel:
    """The model of a case.

    Attributes:
        model: the model, on the device of the run.
        digest: ``sha256:...`` of its file.
        fit: how well it suits the case.
        more: further values about the model for the records.
    """

    model: Model
    digest: str
    fit: Fit
    more: dict[str, Any] = field(default_factory=dict)

    def entries(self) -> dict[str, Any]:
        """Return the values for the records of the case."""
        model = {"name": self.model.metadata.name, "digest": self.digest, **self.more}
        return {"model": model, "fit": self.fit.to_dict()}


class CaseModels:
    """Find the model of each case; safe to use from several threads.

    Args:
        named: name or path of the model that the user named, if any.
        candidates: models to choose from otherwise. They are written to ``run.json``, so that every process and a
            resumed run choose among the same ones.
        device: where the models compute.
        plane: slice plane for 2D models.

    Raises:
        ModelError: a model is missing or has changed.
    """

    def __init__(self, named: str | None, candidates: list[Candidate], device: str, plane: str) -> None:
        self.named, self.candidates, self.device, self.plane = named, candidates, device, plane
        self._entries = [candidate.entry() for candidate in candidates]
        self._lock = threading.Lock()
        self._models: dict[str, Model] = {}
        self._more: dict[str, Any] = {}

    @staticmethod
    def for_new_run(named: str | None, device: str, plane: str) -> CaseModels:
        """Begin a run: without a named model, every model that is available now may be chosen."""
        return CaseModels(named, [] if named is not None else frozen_candidates(), device, plane)

    @staticmethod
    def of_earlier_run(run: dict[str, Any], named: str | None, device: str, plane: str, folder: Path) -> CaseModels:
        """Continue a run with its models.

        Args:
            run: content of ``run.json``.
            named: model that the user names now.
            folder: of the run, for messages.

        Raises:
            ModelError: another model is named than before, or one is missing or has changed.
        """
        written, several = run["model"], run.get("candidates")
        if several is not None:
            if named is not None:
                raise ModelError(f"The run in '{folder}' chooses a model for each image; leave out --model.")
            return CaseModels(None, [Candidate(one["name"], one["digest"]) for one in several], device, plane)
        if "file" in written:
            models = CaseModels(str(folder / written["file"]), [], device, plane)
            models._models[str(models.named)] = same_adapted_model(written, named, device, folder)
            models._more = {key: written[key] for key in ("file", "adaptation")}
            return models
        if named is None and find(written["name"]) is None:
            raise ModelError(f"The run in '{folder}' uses the model '{written['name']}'; give its file with --model.")
        named = named or written["name"]
        path, resolved = resolve(named)
        if resolved != written["name"] or digest_of(path, "sha256") != written["digest"]:
            raise ModelError(
                f"The run in '{folder}' uses the model '{written['name']}' ({written['digest'][:19]}...); "
                "give that one with --model."
            )
        models = CaseModels(named, [], device, plane)
        # Adapting the model was tried, but did not help.
        models._more = {key: written[key] for key in ("adaptation",) if key in written}
        return models

    def of(self, image: sitk.Image) -> CaseModel:
        """Return the model of a case.

        Args:
            image: the image of the case, or its largest region, see
                :meth:`DRDMLib.production.sources.Source.place`.

        Raises:
            ImageError, ModelError: no model can be used with the image.
        """
        if self.named is not None:
            model = self.load(self.named)
            return self._case_model(self.named, named_choice(image, self.named, model, plane=self.plane).fit)
        choice = choose_model(image, plane=self.plane, among=self._entries)
        return self._case_model(choice.name, choice.fit)

    def recorded(self, plan: Plan, folder: Path, number: int) -> CaseModel | None:
        """Return the model that finished samples of a case were made with; ``None`` if there is no sample yet.

        A choice may differ by rounding between computers, but all samples of a case are made with one model.
        """
        names = {self.named} if self.named is not None else {candidate.name for candidate in self.candidates}
        for task in plan.tasks:
            record = records.completed(folder, task.name) if task.case == number else None
            if record is not None and "fit" in record and (self.named is not None or record["model"]["name"] in names):
                return self._case_model(self.named or record["model"]["name"], Fit.from_dict(record["fit"]))
        return None

    def load(self, name: str) -> Model:
        """Load a model onto the device, once."""
        with self._lock:
            if name not in self._models:
                self._models[name] = load_model(name, self.device)
            return self._models[name]

    def _case_model(self, name: str, fit: Fit) -> CaseModel:
        known = {candidate.name: candidate.digest for candidate in self.candidates}
        digest = known.get(name) or digest_of(resolve(name)[0], "sha256")
        return CaseModel(self.load(name), digest, fit, self._more)


def fit_sentences(written: list[dict[str, Any]]) -> tuple[str, str]:
    """Summarize the fits of a run's cases.

    Args:
        written: records of samples.

    Returns:
        A sentence about the models, and a warning about cases that no model fits; each may be empty.
    """
    fits = {record["case"]: Fit.from_dict(record["fit"]) for record in written if "fit" in record}
    by_model: dict[str, list[Fit]] = defaultdict(list)
    for fit in fits.values():
        by_model[fit.model].append(fit)
    parts = [_of_model(model, some) for model, some in sorted(by_model.items(), key=lambda one: -len(one[1]))]
    poor = [case for case, fit in fits.items() if fit.poor]
    warning = ""
    if poor:
        shown = ", ".join(poor[:_NAMED]) + (", ..." if len(poor) > _NAMED else "")
        warning = (
            f"The model does not fit {len(poor)} of {len(fits)} images well ({shown}), so their new versions may not "
            "look like real anatomy; look at them, name another model with --model, or adapt one to these images with "
            "--adapt or 'drdm train --from'."
        )
    return (f"Models: {'; '.join(parts)}." if parts else ""), " ".join(filter(None, [warning, _doubts(written)]))


def _doubts(written: list[dict[str, Any]]) -> str:
    """Return a sentence on samples that are too strong for how well the model fits, see :meth:`Fit.doubtful`."""
    made = [record for record in written if "fit" in record and "item" in record]
    fits = [Fit.from_dict(record["fit"]) for record in made]
    doubtful = [
        not fit.poor and fit.doubtful(_own_percent(record["item"]) / 100)
        for record, fit in zip(made, fits, strict=True)
    ]
    if not any(doubtful):
        return ""
    return (
        f"{sum(doubtful)} of {len(made)} results are deformed more strongly than the model's fit to their images "
        "allows, so they may not look like real anatomy; look at them, or use lower levels."
    )


def _own_percent(item: dict[str, Any]) -> float:
    """Return the mean displacement by the model alone, percent of the longest side."""
    percent = item.get("own_percent", item["metrics"]["mean_percent"])
    return float(percent)


def _of_model(model: str, fits: list[Fit]) -> str:
    known = sorted(fit.undone for fit in fits if fit.undone is not None)
    where = f"{model} on {len(fits)} image{'s' if len(fits) > 1 else ''}"
    if not known:
        return f"{where} (fit not known)"
    low, high = round(100 * known[0]), round(100 * known[-1])
    words = [word for word in ("good", "fair", "poor") if any(fit.word == word for fit in fits)]
    return f"{where} (undoes {low if low == high else f'{low} to {high}'} %: {', '.join(words)})"
