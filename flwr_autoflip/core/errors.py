"""The error family: what was expected, what came, where, and the way out."""


class AutoFlipError(ValueError):
    """A wrong option, model or input; the message says how to mend it."""


class UnsupportedLayerError(AutoFlipError):
    """The model holds layers or operators that cannot be shrunk safely."""


class KeepError(AutoFlipError):
    """Kept units that do not fit the layout they are used with."""


class WireError(AutoFlipError):
    """Bytes or records from the other side that fail a check."""


class DamagedFileError(AutoFlipError):
    """A file that is missing, cut short, or changed since it was written."""


class AutoFlipWarning(UserWarning):
    """Something legal that the user most likely did not mean."""
