"""The sections of the panel, one class each."""

from .apply import ApplySection
from .batch import BatchSection
from .deform import DeformSection
from .input import InputSection
from .registration import RegistrationSection
from .section import PanelContext, Section
from .setup import SetupSection
from .train import TrainSection

__all__ = [
    "ApplySection",
    "BatchSection",
    "DeformSection",
    "InputSection",
    "PanelContext",
    "RegistrationSection",
    "Section",
    "SetupSection",
    "TrainSection",
]
