"""Tables of the page, which sort when a head is clicked."""

from collections.abc import Sequence
from dataclasses import dataclass

from .svg import amount, escape


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what its row is sorted by.

    Parameters
    ----------
    shown : str
    value : float or None (default: None)
        A number behind it; None sorts by what is shown.
    kind : str (default: "")
        The page's class.
    """

    shown: str
    value: float | None = None
    kind: str = ""


UNKNOWN = Cell("–", float("nan"))
"""A figure that nobody took; sorts behind all others."""


def macs_cell(macs: int | None, unknown: int) -> Cell:
    """Give a sum of MACs, to which some messages add what is unknown."""
    if macs is None or (unknown and not macs):
        return Cell("unknown", float("nan"))
    return Cell(f"{'at least ' if unknown else ''}{amount(macs)}", macs)


def failed(count: int) -> Cell:
    """Give a count of failures, which stands out unless it is 0."""
    return Cell(str(count), count, "bad" if count else "")


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], kind: str = "") -> str:
    """Write a table.

    Parameters
    ----------
    heads : sequence of str
    rows : sequence of sequence of Cell
        Each as long as the heads.
    kind : str (default: "")
        ``"tall"`` for one that scrolls in itself.

    Returns
    -------
    str
        HTML.
    """
    words = [bool(rows) and rows[0][i].kind == "words" for i in range(len(heads))]
    head = "".join(
        f'<th scope="col"{" class=words" if left else ""}>'
        f'<button type="button">{escape(name)}</button></th>'
        for name, left in zip(heads, words, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="scroll {kind}"><table class="sortable"><thead><tr>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    kind = f' class="{cell.kind}"' if cell.kind else ""
    known = cell.value is not None and cell.value == cell.value
    value = "" if cell.value is None else f' data-value="{cell.value if known else ""}"'
    return f"<td{kind}{value}>{escape(cell.shown)}</td>"
