"""Errors and warnings of this package, and text made fit to stand in one."""

LONGEST = 500
"""Characters of a text that is shown."""


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


def visible(text: str, longest: int = LONGEST) -> str:
    """Make any text one line of characters that can be seen.

    Nodes and files choose names, reasons and metadata. What they send may hold escape
    sequences that rewrite a terminal, line ends that forge a log's lines, characters
    that turn the direction of writing, or halves of characters that cannot be encoded.

    Parameters
    ----------
    text : str
    longest : int (default: 500)
        Characters from which on it is cut.

    Returns
    -------
    str
        Spaces, tabs and line ends as single spaces, ``"?"`` for what has no picture.

    Examples
    --------
    >>> visible("loss\\x1b[31m\\n[ERROR] all is lost")
    'loss?[31m [ERROR] all is lost'
    >>> visible("a" * 9, longest=4)
    'aaa…'
    """
    words = " ".join(text[: 4 * longest].split())
    shown = "".join(c if c.isprintable() else "?" for c in words)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"
