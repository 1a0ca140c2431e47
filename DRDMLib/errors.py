"""User errors, each with a one-sentence message."""


class DRDMError(Exception):
    """An error that the user can correct.

    The message is one clear sentence that says what to do. The command line prints it without a traceback and exits
    with status 2.
    """


class ImageError(DRDMError):
    """An image, label or field cannot be used: it is missing, damaged, of the wrong kind, or in the wrong place."""


class ModelError(DRDMError):
    """A model cannot be used: it is unknown, damaged, unsafe to load, or of the wrong dimension (2D or 3D)."""


class SettingError(DRDMError):
    """A setting is out of range, or a device is not available."""


class OutputError(DRDMError):
    """An output folder cannot be used or written to, or the disk is full."""


class FallbackWarning(UserWarning):
    """Something is done differently than requested, such as on the CPU; the message says what and why."""


class Cancelled(Exception):
    """Raised by a progress callback to stop a long computation; no incomplete files are left behind."""
