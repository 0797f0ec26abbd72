"""What the page's sections are made of."""

from collections.abc import Sequence

from .charts import series_class
from .runs import Run
from .svg import escape, tag


def section(title: str, note: str, *content: str) -> str:
    """Write a section with its head."""
    head = f"<h2>{escape(title)}</h2>" + (f'<p class="note">{escape(note)}</p>')
    return f"<section>{head}{''.join(content)}</section>"


def card(*content: str, title: str = "") -> str:
    """Write a card."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<div class="card">{head}{"".join(content)}</div>'


def grid(kind: str, *cards: str) -> str:
    """Write cards beside each other."""
    return f'<div class="{kind}">{"".join(cards)}</div>'


def legend(runs: Sequence[Run]) -> str:
    """Say which colour is which run; nothing for a single one."""
    if len(runs) == 1:
        return ""
    items = ""
    for number, run in enumerate(runs):
        kind = f"line main {series_class(number)}"
        line = tag("line", x1=1, x2=23, y1=5, y2=5, class_=kind)
        items += f"<li><svg aria-hidden='true'>{line}</svg>{escape(run.name)}</li>"
    return f'<ul class="legend">{items}</ul>'
