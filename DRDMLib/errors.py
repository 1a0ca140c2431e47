"""What a person can get wrong, said in one sentence."""


class DRDMError(Exception):
    """A mistake that the user can put right.

    The message is one clear sentence that says what to do; the command line prints it without a traceback and
    exits with status 2.
    """


class ImageError(DRDMError):
    """An image or label that cannot be used: missing, broken, of the wrong kind, or in the wrong place."""


class ModelError(DRDMError):
    """A model that cannot be used: unknown, corrupt, unsafe to load, or of the other dimension."""


class SettingError(DRDMError):
    """A setting out of its range, or a device that is not there."""


class OutputError(DRDMError):
    """An output folder that cannot be written to, or a disk that is full."""


class FallbackWarning(UserWarning):
    """Something is done in another way than was asked for, such as on the CPU; the message says what and why."""


class Cancelled(Exception):
    """Raised by a progress callback to stop long work; nothing half-written is left behind."""
