"""A trainer for nnU-Net v2 that also deforms its training cases by fields of a bank.

nnU-Net finds it by the file that ``drdm nnunet install`` writes. Everything else is nnU-Net's, its own augmentation
of the patches included.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..io.files import counted, listed
from .bank import FieldBank
from .nnunet_cases import CaseFields, DeformedDataset
from .nnunet_install import BANK

try:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
except ImportError as missing:
    raise ImportError("nnUNetTrainerDRDM needs nnU-Net v2; install it: pip install nnunetv2") from missing


class DRDMDeformations:
    """Make any trainer of nnU-Net deform its training cases; put it before the trainer in the list of bases.

    Each time a training case is loaded for a batch, it is deformed with a probability that rises from zero in the first
    epoch to ``deformed_share``, in equal steps over the first ``ramp`` of the epochs. Cases for validation are never
    deformed. Environment variables have precedence over the attributes.

    Example:
        >>> class ShortTrainer(DRDMDeformations, nnUNetTrainer_100epochs): ...

    Attributes:
        deformed_share: final probability, 0 to 1 (``DRDM_NNUNET_SHARE``).
        ramp: fraction of the epochs until then, 0 to 1 (``DRDM_NNUNET_RAMP``).
        bank: folder of the bank (``DRDM_NNUNET_BANK``); by default ``drdm_bank`` in the folder of the dataset in
            ``nnUNet_preprocessed``, where ``drdm nnunet prepare`` writes it.
    """

    deformed_share: float = 0.5
    ramp: float = 0.1
    bank: str | os.PathLike[str] | None = None

    _share: Any = None

    def get_tr_and_val_datasets(self: Any) -> tuple[Any, Any]:
        """Return nnU-Net's datasets; that for training deforms its cases.

        Raises:
            SettingError, ImageError, OutputError: see :meth:`DRDMLib.loaders.nnunet_cases.DeformedDataset.check`.
        """
        trainer: Any = super()
        training, validation = trainer.get_tr_and_val_datasets()
        folder = os.environ.get("DRDM_NNUNET_BANK") or self.bank or Path(self.preprocessed_dataset_folder_base, BANK)
        try:
            bank = FieldBank(folder)
        except SettingError:
            name = self.plans_manager.dataset_name
            raise SettingError(
                f"There are no fields for the cases of {name} in '{folder}'; make them with "
                f"'drdm nnunet prepare {name}'."
            ) from None
        # Shared with workers, which may have been started before the first epoch, by fork or by spawning.
        self._share = multiprocessing.RawValue("d", self.share_in(self.current_epoch))
        deformed = DeformedDataset(training, CaseFields(bank, tuple(self.plans_manager.transpose_forward)), self._share)
        without = deformed.check()
        self.print_to_log_file(f"Training cases are deformed by the fields in '{folder}'.")
        if without:
            self.print_to_log_file(
                f"WARNING: {counted(len(without), 'training case')} of {len(deformed.identifiers)} without fields in "
                f"the bank stay undeformed: {listed(without)}."
            )
        return deformed, validation

    def on_train_epoch_start(self: Any) -> None:
        """Set the share of the epoch; workers use it for the batches that they make from then on."""
        trainer: Any = super()
        trainer.on_train_epoch_start()
        if self._share is not None:
            self._share.value = self.share_in(self.current_epoch)
            self.print_to_log_file(f"Share of deformed cases: {self._share.value:.2f}")

    def share_in(self: Any, epoch: int) -> float:
        """Return the probability that a case is deformed in an epoch.

        Raises:
            SettingError: a setting is not a number from 0 to 1.
        """
        share = _fraction("DRDM_NNUNET_SHARE", self.deformed_share)
        steps = _fraction("DRDM_NNUNET_RAMP", self.ramp) * self.num_epochs
        return share * min(1.0, epoch / steps) if steps > 0 else share


def _fraction(variable: str, default: float) -> float:
    text = os.environ.get(variable) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise SettingError(f"{variable} is '{text}'; use a number from 0 to 1.")
    return value


class nnUNetTrainerDRDM(DRDMDeformations, nnUNetTrainer):  # noqa: N801
    """nnU-Net's default trainer with :class:`DRDMDeformations`."""
