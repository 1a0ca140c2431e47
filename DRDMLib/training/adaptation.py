"""Adapt a model to a few unlabeled scans, and keep the better of the two models.

Whether it helps is measured on scans that were left out of the training. With few scans each is left out in turn.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..diffusion.fields import compose, warp
from ..diffusion.forward import ForwardProcess
from ..errors import FallbackWarning, OutputError, SettingError
from ..io.files import read_object, write_text
from ..models.catalogue import digest_of, load_model, resolve
from ..models.metadata import ModelMetadata
from ..models.model import Model, load_model_file, save_model
from ..models.strength import reach
from ..runtime.device import choose_device
from .config import TrainingConfig, default_batch
from .field_sampler import FieldSampler
from .loop import StepReport, train
from .run_file import MODEL, is_training
from .trainer import Trainer

STATE = "adaptation.json"
DEFAULT_MINUTES = 5.0
# Levels at which a model is judged.
LEVELS = (24, 48, 72)
FEWEST_SUBJECTS = 3
# With fewer subjects than this, groups of them are left out in turn; otherwise every fifth one is left out once.
_ENOUGH, _EVERY, _GROUPS = 20, 5, 4
# Random fields per level, and the largest number of images of one subject, for judging.
_FIELDS, _IMAGES = 3, 4
_FEWEST_STEPS = 10
# Of the learning rate for a new model; the whole rate undoes what a well-trained source has learned (docs/adapt.md).
_RATE = 0.5
# Fewer than for a new model: a short training would spend much of its time on them.
_FIELD_POOL = 64
_ALL = "all"


@dataclass(frozen=True)
class Source:
    """The model to start from.

    Attributes:
        model: a model that predicts whole deformations.
        digest: of its file, as ``sha256:...``.
    """

    model: Model
    digest: str

    def require_adaptable(self) -> None:
        """Require that the model can be adapted.

        Raises:
            SettingError: it predicts single small steps, so that its fit cannot be measured by one prediction.
        """
        if not self.model.supports_target_level:
            raise SettingError(
                f"'{self.model.metadata.name}' predicts single small steps, so whether adapting helps cannot be "
                "measured; start from another model, such as general-3d or general-2d."
            )


def load_source(name_or_path: str | os.PathLike[str], device: str | torch.device = "auto") -> Source:
    """Load the model to start from, by its name or path.

    Raises:
        ModelError: the model is unknown, not downloaded or damaged.
        SettingError: the model cannot be adapted, or the device is not available.
    """
    source = Source(load_model(name_or_path, device), digest_of(resolve(name_or_path)[0], "sha256"))
    source.require_adaptable()
    return source


def require_subjects(count: int) -> None:
    """Require that there are enough subjects to leave some out.

    Raises:
        SettingError: there are too few.
    """
    if count < FEWEST_SUBJECTS:
        raise SettingError(
            f"Adapting needs scans of at least {FEWEST_SUBJECTS} subjects, because some are left out to judge it; "
            f"there {'is' if count == 1 else 'are'} {count}."
        )


def adaptation_config(device: str, *, minutes: float = DEFAULT_MINUTES, seed: int = 0) -> TrainingConfig:
    """Return the settings that were measured to work well, for a type of device (docs/adapt.md)."""
    batch, learning_rate = default_batch(device)
    return TrainingConfig(
        minutes=minutes,
        batch=batch,
        learning_rate=_RATE * learning_rate,
        ema=0.998,
        rotation=15.0,
        zoom=(0.85, 1.15),
        shift=0.06,
        field_pool=_FIELD_POOL,
        seed=seed,
    )


@dataclass(frozen=True)
class Adaptation:
    """The result of :func:`adapt`.

    Attributes:
        path: ``model.safetensors``.
        summary: what the model's metadata say about it: source, scans, steps, fit before and after, and which of the
            two models was kept.
    """

    path: Path
    summary: dict[str, Any]

    @property
    def helped(self) -> bool:
        """Whether the adapted model was kept."""
        return bool(self.summary["kept"] == "adapted")

    def sentence(self) -> str:
        """Say whether adapting helped, with figures."""
        s = self.summary
        levels = "/".join(map(str, s["levels"]))
        before, after = ("/".join(f"{100 * v:.0f}" for v in s[key]) for key in ("before", "after"))
        measured = (
            f"on scans left out it undoes {after} % of random deformations at levels {levels}, "
            f"'{s['source']}' {before} %"
        )
        if self.helped:
            return f"Adapting helped: {measured}."
        return f"Adapting did not help: {measured}; the result is a copy of '{s['source']}'."


@torch.no_grad()
def share_undone(network: nn.Module, images: Tensor, metadata: ModelMetadata, device: torch.device) -> Tensor:
    """Measure which share of random deformations a network undoes in one prediction.

    It is 1 minus the energy of what is left of a field, divided by the energy of the field. The fields are those that
    the model is trained on, and the same for all images and at every call.

    Args:
        network: predicts whole deformations, see :class:`DRDMLib.networks.CompactNet`.
        images: (M, 1, *S), uint8, on the model's grid.

    Returns:
        (M, L) for the levels of ``LEVELS``, on the CPU; at most 1, and negative where a prediction makes it worse.
    """
    generator = torch.Generator().manual_seed(0)
    process = ForwardProcess.of(metadata)
    shares = []
    for level in LEVELS:
        fields = process.ddf(min(level, metadata.timesteps - 1), generator, batch=_FIELDS).to(device)
        t = torch.full((len(fields),), min(level, metadata.timesteps - 1), device=device)
        energy = fields.square().flatten(1).sum(dim=1)
        row = []
        for image in images:
            batch = (image.to(device).float() / 255.0).expand(len(fields), *[-1] * image.ndim)
            deformed = warp(batch, fields, padding=metadata.image_padding)
            left = compose(fields, network(deformed, t, torch.full_like(t, -1)).float())
            row.append(1 - (left.square().flatten(1).sum(dim=1) / energy).mean())
        shares.append(torch.stack(row).cpu())
    return torch.stack(shares, dim=1)


def adapt(
    source: Source,
    subjects: Sequence[Tensor],
    metadata: ModelMetadata,
    config: TrainingConfig,
    run: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    resume: bool = False,
    on_step: StepReport | None = None,
) -> Adaptation:
    """Train a model further on a few scans, measure whether it helped, and write the better model to a folder.

    From 20 subjects on, every fifth one is left out of the training and judged. With fewer, up to four groups of them
    are left out in turn; if that helped, the model is trained on all of them. All trainings have the same number of
    steps. It follows from ``config.minutes`` and the speed of a few steps, unless ``config.steps`` gives it, so that a
    run can be repeated.

    Args:
        source: the model to start from.
        subjects: images of each subject, (M, 1, *S) uint8, on the model's grid.
        metadata: of the adapted model, see :func:`adapted_metadata`; grid, network and random fields are the source's.
        config: settings of each training; warm-up and pool of fields are adjusted.
        run: folder for ``model.safetensors``, ``adaptation.json`` and, while it runs, the trainings.
        device: as for :func:`DRDMLib.training.train`.
        resume: continue an interrupted run.
        on_step: called with (step, progress 0..1 of the whole, figures); may raise an exception to cancel.

    Raises:
        SettingError: the model cannot be adapted, there are too few subjects, or a run to resume has other settings.
        OutputError: the folder cannot be written to.
    """
    return _Run(source, subjects, metadata, config, Path(run), choose_device(device), on_step).to_end(resume)


def adapted_metadata(source: ModelMetadata, name: str, scans: int, **described: str) -> ModelMetadata:
    """Return the metadata of a model that is adapted from ``source`` on a number of scans.

    Args:
        described: ``anatomy``, ``modality``, ``training_data`` or ``licence``. By default the license is the source's,
            and anatomy and modality, which may have changed, are empty.
    """
    texts: dict[str, Any] = {
        "anatomy": "",
        "modality": "",
        "training_data": f"{source.name}, adapted on {scans} scans",
        "licence": source.licence,
    }
    more: dict[str, Any] = texts | described
    return replace(source, name=name, version=__version__, people_differ=None, reach=reach(source), **more)


class _Run:
    """A run of :func:`adapt`; ``state`` is the content of ``adaptation.json``."""

    def __init__(
        self,
        source: Source,
        subjects: Sequence[Tensor],
        metadata: ModelMetadata,
        config: TrainingConfig,
        folder: Path,
        device: torch.device,
        on_step: StepReport | None,
    ) -> None:
        source.require_adaptable()
        require_subjects(len(subjects))
        self.source, self.subjects, self.metadata, self.config = source, subjects, metadata, config
        self.folder, self.device, self.on_step = folder, device, on_step
        self.weights = {name: value.cpu() for name, value in source.model.network.state_dict().items()}
        count = len(subjects)
        groups = min(_GROUPS, count)
        self.left_out = (
            [range(0, count, _EVERY)] if count >= _ENOUGH else [range(k, count, groups) for k in range(groups)]
        )
        self.trainings = len(self.left_out) + (count < _ENOUGH)
        self.state: dict[str, Any] = {}

    def to_end(self, resume: bool) -> Adaptation:
        model = self.folder / MODEL
        if not (resume and self._continue()):
            self._begin()
        if self.state["kept"] and model.is_file():
            return self._finish(model)
        for number in range(len(self.state["groups"]), len(self.left_out)):
            self._judge(number)
        before, after = self._mean("before"), self._mean("after")
        kept = "adapted" if float(after.mean()) > float(before.mean()) else "source"
        network, trained = self.source.model.network, self.source.model.metadata.training
        if kept == "adapted":
            # A single training is complete already.
            name, left_out = (self._name(0), self.left_out[0]) if self.trainings == 1 else (_ALL, range(0))
            path = self._train(name, left_out, self.trainings - 1)
            made = load_model_file(path, "cpu")
            network, trained = made.network, made.metadata.training
        self.state["kept"] = kept
        metadata = self.metadata
        if kept == "source":
            # It was not changed, so what it is for has not changed either.
            metadata = replace(self.source.model.metadata, name=metadata.name)
        described = replace(metadata, training=trained | {"adaptation": self._summary()})
        save_model(model, network, described)
        self._write()
        return self._finish(model)

    def _finish(self, model: Path) -> Adaptation:
        self._remove_trainings()
        return Adaptation(model, self._summary())

    def _remove_trainings(self) -> None:
        for name in [*map(self._name, range(len(self.left_out))), _ALL]:
            # Only folders that a training has made.
            if is_training(self.folder / name):
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _begin(self) -> None:
        self._remove_trainings()
        steps = self.config.steps or self._steps_within(self.config.minutes / self.trainings)
        self.state = self._settings() | {"steps": steps, "groups": [], "kept": ""}
        self._write()

    def _continue(self) -> bool:
        """Read the state of an interrupted run with the same settings."""
        path = self.folder / STATE
        if not path.is_file():
            return False
        try:
            state = read_object(path, ("steps", "groups", "kept", *self._settings()))
        except (OSError, ValueError) as error:
            if (self.folder / MODEL).exists():
                raise OutputError(
                    f"'{path}' is damaged, so this run cannot be resumed; choose a new folder, or use its model."
                ) from error
            warnings.warn(f"'{path}' is damaged, so adapting starts again.", FallbackWarning, stacklevel=2)
            return False
        wanted = self._settings() | ({"steps": self.config.steps} if self.config.steps else {})
        for key, value in wanted.items():
            if state[key] != value:
                raise SettingError(
                    f"The run in '{self.folder}' was made with other {key.replace('_', ' ')}; use the same settings, "
                    "or choose a new folder."
                )
        self.state = state
        return True

    def _settings(self) -> dict[str, Any]:
        c = self.config
        images = hashlib.sha256()
        for subject in self.subjects:
            images.update(subject.numpy().tobytes())
        return {
            "source": self.source.model.metadata.name,
            "source_digest": self.source.digest,
            "scans": "sha256:" + images.hexdigest(),
            "batch": c.batch,
            "learning_rate": c.learning_rate,
            "augmentation": [c.rotation, *c.zoom, c.shift],
            "seed": c.seed,
        }

    def _summary(self) -> dict[str, Any]:
        state = self.state
        return {
            "source": state["source"],
            "source_digest": state["source_digest"],
            "subjects": len(self.subjects),
            "images": sum(map(len, self.subjects)),
            "trainings": self.trainings,
            **{key: state[key] for key in ("steps", "batch", "learning_rate", "augmentation", "seed")},
            "levels": list(LEVELS),
            "before": [round(float(v), 3) for v in self._mean("before")],
            "after": [round(float(v), 3) for v in self._mean("after")],
            "kept": state["kept"],
        }

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / STATE, json.dumps(self.state, indent=1) + "\n")

    @staticmethod
    def _name(number: int) -> str:
        return f"left-out-{number + 1}"

    def _judge(self, number: int) -> None:
        """Train without one group of subjects, and measure both models on it."""
        group = self.left_out[number]
        path = self._train(self._name(number), group, number)
        adapted = load_model_file(path, self.device)
        found: dict[str, list[list[float]]] = {"before": [], "after": []}
        for subject in group:
            images = self.subjects[subject]
            images = images[torch.linspace(0, len(images) - 1, min(_IMAGES, len(images))).round().long()]
            for key, network in (("before", self.source.model.on(self.device).network), ("after", adapted.network)):
                shares = share_undone(network.eval(), images, self.metadata, self.device).mean(dim=0)
                found[key].append([float(v) for v in shares])
        self.state["groups"].append(found)
        self._write()
        if self.trainings > 1:
            shutil.rmtree(self.folder / self._name(number), ignore_errors=True)

    def _mean(self, key: str) -> Tensor:
        """Return the mean share undone at each level, over all subjects that were left out."""
        return torch.tensor([row for group in self.state["groups"] for row in group[key]]).mean(dim=0)

    def _train(self, name: str, left_out: range, number: int) -> Path:
        """Train in a folder of its own, or continue there; nothing is done if that training is complete."""
        kept = torch.cat([images for k, images in enumerate(self.subjects) if k not in left_out])
        none = kept[:0]

        def on_step(step: int, share: float, figures: dict[str, float]) -> None:
            if self.on_step is not None:
                self.on_step(number * self.state["steps"] + step, (number + share) / self.trainings, figures)

        return train(
            kept,
            none,
            self.metadata,
            self._short(self.state["steps"]),
            self.folder / name,
            device=self.device,
            resume=True,
            weights=self.weights,
            on_step=on_step,
        )

    def _short(self, steps: int) -> TrainingConfig:
        pool = min(self.config.field_pool, _FIELD_POOL)
        return replace(self.config, steps=steps, warmup=min(100, max(1, steps // 10)), field_pool=pool)

    def _steps_within(self, minutes: float) -> int:
        """Estimate the steps of a training that takes this many minutes, from a few steps that are discarded."""
        batch = self.config.batch
        trial = replace(self._short(_FEWEST_STEPS), field_pool=batch)
        trainer = Trainer(self.metadata, trial, self.device, weights=self.weights)
        images = torch.cat(list(self.subjects)).to(self.device)
        fields = FieldSampler(self.metadata, torch.Generator(self.device).manual_seed(0))
        float(trainer.advance(images).total)
        begin = time.monotonic()
        float(fields.draw(batch)[1].ddf.sum())
        drawn = time.monotonic()
        # Every eighth step draws one new field, see FieldSampler; the trial has one such step in eight as well.
        for _ in range(8):
            total = trainer.advance(images).total
        float(total)
        ended = time.monotonic()
        filling = (drawn - begin) * self._short(_FEWEST_STEPS).field_pool / batch
        return max(_FEWEST_STEPS, int((60 * minutes - filling) / ((ended - drawn) / 8)))
