"""The command ``drdm fit``: how well the models suit scans."""

from __future__ import annotations

import argparse
from pathlib import Path

import SimpleITK as sitk

from ..errors import DRDMError, ImageError, ModelError
from ..io.datasets import Case
from ..io.images import read_image
from ..io.left_out import LeftOut
from ..models.catalogue import Entry, available_models, find
from ..models.choice import choose_model, loaded, named_choice, reasons_against
from ..models.fit import Fit, Probe, measure_fit
from ..models.model import load_model_file
from ..runtime.reporter import Reporter


def fit(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm fit``: print a table of models for each scan.

    A scan that cannot be read is left out.

    Raises:
        DRDMError: no scan, or not a named model, can be used.

    Warns:
        FallbackWarning: a scan is left out.
    """
    bad = LeftOut(len(options.scans))
    for path in options.scans:
        try:
            image = read_image(path)
        except ImageError as error:
            bad.add(Case(Path(path).name, Path(path)), error)
            continue
        bad.used()
        if options.model:
            rows = [(_named(image, name, options.plane), "") for name in options.model]
            chosen = ""
        else:
            choice = choose_model(image, plane=options.plane)
            rows, chosen = _all(image, options.plane), choice.fit.model
            if choice.warning():
                reporter.warning(f"{Path(path).name}: {choice.warning()}")
        reporter.item(scan=str(path), chosen=chosen, fits=[one.to_dict() | {"left_out": why} for one, why in rows])
        if options.progress != "json":
            print("\n".join([str(path), *(_line(one, why, chosen) for one, why in rows)]))
    bad.require_one()


def _named(image: sitk.Image, name: str, plane: str) -> Fit:
    entry = find(name)
    model = loaded(entry) if entry is not None and entry.available else None
    if model is None:
        if not Path(name).is_file():
            raise ModelError(f"There is no model '{name}' here; run 'drdm models' to list the names.")
        model = load_model_file(name, "cpu")
    return named_choice(image, name, model, plane=plane).fit


def _all(image: sitk.Image, plane: str) -> list[tuple[Fit, str]]:
    """Measure every model that can be used with the image, also those that are not candidates."""
    entries = [entry for entry in available_models() if entry.available]
    probe, rows = Probe(image, plane), []
    for entry, reason in zip(entries, reasons_against(image, entries), strict=True):
        try:
            one = measure_fit(probe, loaded(entry))
        except DRDMError:
            continue
        rows.append((one, reason or _never_chosen(entry)))
    return sorted(rows, key=lambda row: -2.0 if row[0].undone is None else row[0].undone, reverse=True)


def _never_chosen(entry: Entry) -> str:
    return "" if entry.automatic and not entry.url else "used only if you name it"


def _line(one: Fit, reason: str, chosen: str) -> str:
    undone = "" if one.undone is None else f"{100 * one.undone:.0f} %"
    still = "" if one.still is None else f"{100 * one.still:.1f} %"
    note = "chosen" if one.model == chosen else reason
    return f"  {one.model:24} undoes {undone:>6}  {one.word:9} moves it by {still:>6} as it is  {note}".rstrip()
