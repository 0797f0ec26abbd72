"""What the page is made of: sections, cards, legends, tables that sort."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape as quote

from ...errors import visible
from ..amounts import amount

SERIES = 6
"""Colours that the page has for runs; more runs use them again, dashed."""


def escape(words: str) -> str:
    """Write a text of any origin so that a page shows it and nothing else.

    Examples
    --------
    >>> escape("</script>\\x1b")
    '&lt;/script&gt;?'
    """
    return quote(visible(words))


def section(title: str, note: str, *content: str) -> str:
    """Write a section with its head."""
    head = f'<h2>{escape(title)}</h2><p class="note">{escape(note)}</p>'
    return f"<section>{head}{''.join(content)}</section>"


def card(content: str, title: str = "") -> str:
    """Write a card."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<div class="card">{head}{content}</div>'


def grid(kind: str, cards: Iterable[str]) -> str:
    """Write cards beside each other."""
    return f'<div class="{kind}">{"".join(cards)}</div>'


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Say what is drawn how: pairs of a page's class and words."""
    items = (f'<li><i class="key {k}"></i>{escape(words)}</li>' for k, words in entries)
    return f'<ul class="legend">{"".join(items)}</ul>'


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what its row is sorted by.

    Parameters
    ----------
    shown : str
    value : float or None (default: None)
        A number behind it, NaN for one that is not known; None sorts by what is shown.
    kind : str (default: "")
        The page's class.
    beside : str (default: "")
        Said below it, where there is room.
    """

    shown: str
    value: float | None = None
    kind: str = ""
    beside: str = ""


UNKNOWN = Cell("-", float("nan"))
"""A figure that nobody took; sorts behind all others."""


def macs_cell(macs: int | None, unknown: int, beside: str = "") -> Cell:
    """Give a sum of MACs, to which some messages add what is unknown."""
    if macs is None or (unknown and not macs):
        return Cell("unknown", float("nan"), beside=beside)
    return Cell(f"{'at least ' if unknown else ''}{amount(macs)}", macs, beside=beside)


def failure_cell(count: int, beside: str = "") -> Cell:
    """Give a count of failures, which stands out unless it is 0."""
    return Cell(str(count), count, "bad" if count else "", beside)


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], kind: str = "") -> str:
    """Write a table; one of kind ``"tall"`` scrolls in itself."""
    columns = zip(heads, rows[0] if rows else [Cell("")] * len(heads), strict=True)
    head = "".join(
        f'<th scope="col"{" class=words" if cell.kind == "words" else ""}>'
        f'<button type="button">{escape(name)}</button></th>'
        for name, cell in columns
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
