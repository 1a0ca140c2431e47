"""The command ``drdm nnunet``: a trainer for nnU-Net v2, and the fields that it needs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..io.files import counted
from ..loaders.bank_making import make_bank
from ..loaders.nnunet_install import VARIABLE, bank_folder, is_found, raw_dataset
from ..loaders.nnunet_install import install as write_trainer
from ..loaders.nnunet_install import remove as delete_trainer
from ..runtime.distributed import current_process
from ..runtime.reporter import Reporter
from .region import region_settings


def install(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm nnunet install``."""
    path = write_trainer(options.to)
    reporter.message(f"The trainer nnUNetTrainerDRDM is in '{path}'.")
    if not is_found(path):
        folder = path.parent.resolve()
        line = f'setx {VARIABLE} "{folder}"' if os.name == "nt" else f"export {VARIABLE}='{folder}'"
        reporter.message(f"Set this variable where you set nnUNet_raw, so that nnU-Net finds it:\n{line}")


def remove(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm nnunet remove``."""
    for path in delete_trainer(options.to):
        reporter.message(f"Removed '{path}'.")


def prepare(options: argparse.Namespace, reporter: Reporter) -> None:
    """Run ``drdm nnunet prepare``."""
    dataset = raw_dataset(options.dataset)
    folder = bank_folder(dataset) if options.output is None else Path(options.output)
    process = current_process(options.share)
    bank = make_bank(
        dataset,
        folder,
        model=options.model,
        levels=tuple(dict.fromkeys(options.levels)),
        copies=options.copies,
        seed=options.seed,
        steps=options.steps,
        pose=options.pose,
        device=options.device,
        plane=options.plane,
        border=options.border,
        region=region_settings(options),
        bones=options.bones,
        toward=options.toward,
        subject_pattern=options.subject,
        process=process,
        on_case=lambda done, total: reporter.progress("cases", done, total),
    )
    if process.world > 1:
        reporter.message(f"Share {process.rank + 1} of {process.world} is done; the bank is '{folder}'.")
        return
    count = counted(bank.count(bank.names[0]), "field")
    reporter.message(f"The bank '{folder}' has {count} for each of {counted(len(bank.names), 'case')}.")
