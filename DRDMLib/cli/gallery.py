"""The command ``drdm gallery``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import DRDMError, ImageError, ModelError, OutputError
from ..io.datasets import find_cases
from ..io.files import write_text
from ..io.left_out import LeftOut
from ..models.catalogue import load_model
from ..production.gallery import GallerySettings, Shown, blind_page, gallery_page, show_case
from ..runtime.device import choose_device
from ..runtime.reporter import Reporter
from ..settings import DeformationSettings


def gallery(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm gallery``."""
    choose_device(options.device)
    pages = [Path(path) for path in (options.output, options.blind) if path]
    for path in pages:
        _require_new_page(path)
    if len({path.resolve() for path in pages}) < len(pages):
        raise OutputError("The gallery and the blinded test have one name; choose another with --blind.")
    settings = GallerySettings(
        tuple(dict.fromkeys(options.levels)),
        options.versions,
        options.seed,
        None if options.model is None else load_model(options.model, options.device),
        options.device,
        DeformationSettings(
            steps=options.steps, pose=options.pose, plane=options.plane, border=options.border, bones=options.bones
        ),
    )
    cases = find_cases(options.dataset)
    total, done = len(cases) * len(settings.levels) * settings.versions, 0
    bad, shown = LeftOut(len(cases)), list[Shown]()

    def on_version() -> None:
        nonlocal done
        done += 1
        reporter.progress("gallery", done, total)

    for case in cases:
        try:
            shown.append(show_case(case, settings, on_version))
            bad.used()
        except (ImageError, ModelError) as error:
            bad.add(case, error)
    bad.require_one()
    bad.warn()
    title = Path(options.dataset).resolve().name
    write_text(pages[0], gallery_page(title, shown))
    if options.blind:
        write_text(pages[1], blind_page(title, shown, options.seed))
    names = " and ".join(f"'{path}'" for path in pages)
    reporter.message(f"Open {names} in a browser. The pictures are as confidential as the scans.")


def _require_new_page(path: Path) -> None:
    """Check that a page can be written.

    Raises:
        OutputError: a file of that name exists, or it is not called .html.
    """
    problem: DRDMError | None = None
    if path.suffix.lower() not in (".html", ".htm"):
        problem = OutputError(f"'{path}' is not the name of a page; choose one that ends in .html.")
    elif path.exists():
        problem = OutputError(f"'{path}' exists already; choose another name.")
    elif not path.parent.is_dir():
        problem = OutputError(f"There is no folder '{path.parent}'; create it, or choose another.")
    if problem is not None:
        raise problem
