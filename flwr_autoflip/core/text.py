"""Text from elsewhere, made fit for a terminal, a log line or a page."""

LONGEST = 500
"""Characters of a text that is shown."""


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
