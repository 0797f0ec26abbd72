"""Rows of a heat map as inline SVG that stretches to its place."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

from .svg import escape, percent, short, tag

FAINTEST = 0.08
"""Opacity of a cell that keeps nothing: it can still be seen."""
LEVELS = 25
"""Shades of rows that change often."""
MANY = 12
"""Changes from which on a row's cells have no words of their own."""

Cells = list[tuple[int, int, float]]
"""First round, how many rounds, share."""


def strip(shares: Sequence[float], name: str) -> str:
    """Draw a row: a cell a round, equal neighbours as one.

    Parameters
    ----------
    shares : sequence of float
        In [0, 1], one a round.
    name : str
        What it is a row of.

    Returns
    -------
    str
        SVG; it has no text, so it may stretch.
    """
    cells = _merge(shares)
    drawn = _few(cells, name) if len(cells) <= MANY else _many(shares, name)
    return tag(
        "svg",
        *drawn,
        class_="strip",
        viewBox=f"0 0 {len(shares)} 1",
        preserveAspectRatio="none",
    )


def _merge(shares: Sequence[float]) -> Cells:
    cells, first = [], 0
    for share, equal in groupby(shares):
        count = len(list(equal))
        cells.append((first, count, share))
        first += count
    return cells


def _few(cells: Cells, name: str) -> list[str]:
    drawn = []
    for first, count, share in cells:
        when = f"round {first}" if count == 1 else f"rounds {first}-{first + count - 1}"
        words = tag("title", escape(f"{name}, {when}: {percent(share)}"))
        place = {"x": first, "y": 0, "width": count, "height": 1}
        drawn.append(
            tag("rect", words, class_="heat", fill_opacity=_opacity(share), **place)
        )
    return drawn


def _many(shares: Sequence[float], name: str) -> list[str]:
    """Draw all cells of a shade as one path: a plan a round stays a small page."""
    shades: dict[float, str] = defaultdict(str)
    for first, count, share in _merge([round(s * LEVELS) / LEVELS for s in shares]):
        shades[share] += f"M{first} 0h{count}v1h-{count}z"
    words = f"{name}: {percent(min(shares))} to {percent(max(shares))}"
    drawn = [
        tag("path", class_="heat", fill_opacity=_opacity(share), d=path)
        for share, path in shades.items()
    ]
    return [tag("title", escape(words)), *drawn]


def _opacity(share: float) -> str:
    return short(FAINTEST + (1 - FAINTEST) * share)
