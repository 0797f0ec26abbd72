"""Charts as inline SVG: small pictures that stay legible at a phone's width.

Every chart is drawn 300 units wide and shown at least that wide, so that its texts keep
the size the page gives them. Colours are the page's: elements only say which series or
role they have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .svg import (
    Scale,
    amount,
    escape,
    linear,
    log_ticks,
    logarithmic,
    short,
    tag,
    text,
    ticks,
)

WIDTH, HEIGHT = 300, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 8, 12, 40
SERIES = 6
"""Colours that the page has for series; more runs use them again, dashed."""


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Parameters
    ----------
    name : str
    number : int
        Which series it is: its colour.
    x, y : ndarray
        ``(n,)``; where y is NaN there is nothing.
    role : {"main", "raw", "reference"} (default: "main")
        A ``"raw"`` line is faint, a ``"reference"`` dotted.
    """

    name: str
    number: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    role: str = "main"


@dataclass(frozen=True)
class Mark:
    """A place on the horizontal axis: where exploring ended.

    Parameters
    ----------
    number : int
        Its series.
    at : float
    label : str
    """

    number: int
    at: float
    label: str


def series_class(number: int) -> str:
    """Name the page's class of a series."""
    dashed = " dashed" if number >= SERIES else ""
    return f"s{number % SERIES}{dashed}"


def line_chart(
    lines: Sequence[Line],
    marks: Sequence[Mark],
    *,
    label: str,
    unit: str = "",
    y_unit: str | None = None,
    log: bool = False,
    whole: bool = False,
    alone: bool = True,
) -> str:
    """Draw lines over a horizontal axis.

    Parameters
    ----------
    lines : sequence of Line
    marks : sequence of Mark
    label : str
        Of the horizontal axis.
    unit : str (default: "")
        Of its amounts.
    y_unit : str, optional
        Of amounts on the vertical axis; left out, they are plain numbers.
    log : bool (default: False)
        Horizontal axis by logarithms.
    whole : bool (default: False)
        Its ticks are whole numbers.
    alone : bool (default: True)
        There is one run: its mark is a shaded band, otherwise a triangle.

    Returns
    -------
    str
        SVG.
    """
    x_low, x_high = _range(
        [line.x[np.isfinite(line.y)] for line in lines]
        + [np.array([m.at for m in marks])],
        log,
    )
    y_low, y_high = _range([line.y for line in lines], False)
    y_ticks = ticks(y_low, y_high)
    y = linear(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    make = logarithmic if log else linear
    x = make(x_low, x_high, LEFT, WIDTH - RIGHT)
    x_ticks = log_ticks(x_low, x_high) if log else ticks(x_low, x_high, whole=whole)
    x_ticks = [value for value in x_ticks if x_low <= value <= x_high * 1.0001]
    write = short if y_unit is None else lambda value: amount(value, y_unit)
    parts = [_grid(y, y_ticks, write), _x_axis(x, x_ticks, label, unit)]
    parts += [_mark(mark, x, alone) for mark in marks]
    parts += [_path(line, x, y) for line in lines]
    return _svg(HEIGHT, f"{label}: {_names(lines)}", *parts)


def _names(lines: Sequence[Line]) -> str:
    return ", ".join(dict.fromkeys(line.name for line in lines))


def _range(values: Sequence[NDArray[np.float64]], log: bool) -> tuple[float, float]:
    known = np.concatenate([np.asarray(v, float) for v in values])
    known = known[np.isfinite(known)]
    if log:
        known = known[known > 0]
    if not known.size:
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = float(known.min()), float(known.max())
    if log:
        return low, max(high, 2 * low)
    return min(0.0, low), high if high > min(0.0, low) else low + 1.0


def _svg(height: float, description: str, *parts: str) -> str:
    return tag(
        "svg",
        tag("title", escape(description)),
        *parts,
        class_="chart",
        viewBox=f"0 0 {WIDTH} {short(height)}",
        role="img",
    )


def _grid(y: Scale, values: Sequence[float], write: Any) -> str:
    lines = [
        tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y(v), y2=y(v))
        + text(write(v), LEFT - 6, y(v) + 4, text_anchor="end")
        for v in values
    ]
    return "".join(lines)


def _x_axis(x: Scale, values: Sequence[float], label: str, unit: str) -> str:
    bottom = HEIGHT - BOTTOM
    parts = [
        tag("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom)
    ]
    free = 0.0
    for value in values:
        written = amount(value, unit)
        half = 3.4 * len(written)
        at = min(x(value), WIDTH - half)
        if at - half < free:
            continue
        free = at + half + 8
        parts.append(text(written, at, bottom + 18, text_anchor="middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(text(label, middle, HEIGHT - 5, text_anchor="middle", class_="label"))
    return "".join(parts)


def _mark(mark: Mark, x: Scale, alone: bool) -> str:
    """Shade what exploring cost; with several runs, a tick in each one's colour."""
    at, bottom = max(x(mark.at), LEFT + 1.5), HEIGHT - BOTTOM
    title = tag("title", escape(mark.label))
    if not alone:
        points = f"{short(at - 4)},{bottom + 1} {short(at + 4)},{bottom + 1} "
        points += f"{short(at)},{bottom - 8}"
        return tag(
            "polygon",
            title,
            points=points,
            class_=f"mark fill {series_class(mark.number)}",
        )
    band = tag(
        "rect",
        title,
        class_="explored",
        x=LEFT,
        width=at - LEFT,
        y=TOP,
        height=bottom - TOP,
    )
    edge = tag("line", class_="edge", x1=at, x2=at, y1=TOP, y2=bottom)
    right = at < WIDTH - 90
    words = text(
        "exploring",
        at + (5 if right else -5),
        bottom - 6,
        text_anchor="start" if right else "end",
        class_="hint",
    )
    return band + edge + words


def _path(line: Line, x: Scale, y: Scale) -> str:
    points, steps = [], []
    pen = "M"
    for across, up in zip(line.x, line.y, strict=True):
        if not (np.isfinite(across) and np.isfinite(up)):
            pen = "M"
            continue
        points.append((x(float(across)), y(float(up))))
        steps.append(f"{pen}{points[-1][0]:.1f} {points[-1][1]:.1f}")
        pen = "L"
    if not points:
        return ""
    kind = f"line {line.role} {series_class(line.number)}"
    drawn = tag("path", tag("title", escape(line.name)), d="".join(steps), class_=kind)
    if len(points) == 1:
        (across, up), *_ = points
        drawn += tag("circle", cx=across, cy=up, r=3, class_=f"fill {kind}")
    return drawn


# --- Bars ---


def histogram(counts: Mapping[str, Any]) -> str:
    """Draw how a group's units are spread by guidance, kept and pruned ones stacked.

    Parameters
    ----------
    counts : mapping
        ``"top"``, ``"kept"`` and ``"pruned"`` of
        :func:`flwr_autoflip.ledger.histogram.unit_histograms`.

    Returns
    -------
    str
        SVG.
    """
    height, bottom = 120, 22
    kept, pruned = np.array(counts["kept"]), np.array(counts["pruned"])
    most = int((kept + pruned).max()) or 1
    y = linear(0, most, height - bottom, TOP)
    step = (WIDTH - LEFT - RIGHT) / len(kept)
    parts = [_count_axis(y, most)]
    for number, (stay, go) in enumerate(
        zip(kept.tolist(), pruned.tolist(), strict=True)
    ):
        left = LEFT + number * step + 0.75
        if stay:
            parts.append(_bar(left, step - 1.5, y(0), y(stay), "kept", f"{stay} kept"))
        if go:
            words = f"{go} pruned"
            parts.append(_bar(left, step - 1.5, y(stay), y(stay + go), "gone", words))
    ends = ((0.0, LEFT, "start"), (counts["top"], WIDTH - RIGHT, "end"))
    parts += [text(f"{v:.3g}", at, height - 6, text_anchor=a) for v, at, a in ends]
    return _svg(height, f"{kept.sum()} units kept, {pruned.sum()} pruned", *parts)


def _count_axis(y: Scale, most: int) -> str:
    lines = [
        tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y(v), y2=y(v))
        for v in (0, most)
    ]
    words = [text(str(v), LEFT - 6, y(v) + 4, text_anchor="end") for v in (0, most)]
    return "".join(lines + words)


def _bar(
    left: float, width: float, low: float, high: float, kind: str, words: str
) -> str:
    title = tag("title", escape(words))
    return tag(
        "rect", title, class_=kind, x=left, width=width, y=high, height=low - high
    )


def node_bars(
    values: Sequence[tuple[str, Sequence[float]]],
    kinds: Sequence[str],
    unit: str,
    most: float,
) -> str:
    """Draw a column a node, its parts stacked.

    Parameters
    ----------
    values : sequence of (str, sequence of float)
        A node's name and its parts.
    kinds : sequence of str
        The page's classes of the parts.
    unit : str
    most : float
        What the axis reaches, so that several runs have one scale.

    Returns
    -------
    str
        SVG.
    """
    height, bottom = 150, 22
    y_ticks = ticks(0, most or 1.0, 3)
    y = linear(0, y_ticks[-1], height - bottom, TOP)
    step = (WIDTH - LEFT - RIGHT - 8) / max(1, len(values))
    gap = min(2.0, step / 5)
    parts = [_grid(y, y_ticks, lambda value: amount(value, unit))]
    for number, (name, amounts) in enumerate(values):
        base = 0.0
        for kind, value in zip(kinds, amounts, strict=True):
            words = f"node {name}: {amount(value, unit)}"
            left = LEFT + 8 + number * step
            if value:
                parts.append(
                    _bar(left, step - gap, y(base), y(base + value), kind, words)
                )
            base += value
    words = f"{len(values)} nodes, most first"
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(text(words, middle, height - 6, text_anchor="middle", class_="label"))
    return _svg(height, words, *parts)
