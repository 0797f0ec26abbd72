"""Charts by matplotlib: inline SVG in the page's colours, strips of pixels, PNGs.

An SVG's texts are texts, in the page's font, and its colours the page's variables, so
that dark mode is the page's matter. It is 300 units wide and shown at least that wide,
so that its texts keep their size on a phone.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import AutoFlipError, visible
from ..amounts import amount
from .html import SERIES, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = NDArray[np.float64]

CSS = files(__package__).joinpath("page.css").read_text("utf-8")
COLOURS = dict(re.findall(r"--(\w+): (#\w{6});", CSS.partition("@media")[0]))
"""The page's variables, as they are when it is light."""
WIDTH, HEIGHT, LOW_HEIGHT = 300, 210, 150
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 44
"""Margins of an SVG, for the texts of its axes; half of the last without ticks."""
STYLE: dict[str, Any] = {
    **{"svg.fonttype": "none", "text.parse_math": False, "font.size": 12},
    **{"axes.facecolor": "none", "figure.facecolor": "none"},
    **{"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True},
    **{f"axes.spines.{side}": False for side in ("left", "right", "top")},
    **{"xtick.major.size": 0, "xtick.major.pad": 9, "axes.labelpad": 3},
    **{"ytick.major.size": 0, "ytick.major.pad": 6},
    **{f"{axis}tick.labelcolor": COLOURS["soft"] for axis in "xy"},
    **{"axes.edgecolor": COLOURS["soft"], "grid.color": COLOURS["line"]},
    **{"text.color": COLOURS["soft"], "axes.labelcolor": COLOURS["ink"]},
    **{"axes.xmargin": 0, "axes.titlesize": 11, "legend.fontsize": 9},
    **{f"lines.{which}_capstyle": "round" for which in ("solid", "dash")},
}
ROLES: dict[str, dict[str, Any]] = {
    "main": {"lw": 2},
    "raw": {"lw": 1, "alpha": 0.4},
    "reference": {"lw": 2, "ls": (0, (0.1, 2.5))},
}
"""How lines are drawn: a raw one is faint, a reference dotted."""
STEPS = [1, 2, 2.5, 5, 10]
"""From tick to tick, times a power of ten."""
FAINTEST = 0.08
"""Opacity of a pixel of 0: it can still be seen."""
MOST_CHARTS, TALLEST = 120, 100
"""Of a PNG; the latter in inches."""


@dataclass(frozen=True)
class Chart:
    """What can be drawn on axes; its name is also for those who do not see it."""

    name: str
    draw: Callable[["Axes"], None]
    height: int = HEIGHT


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Parameters
    ----------
    name : str
    number : int
        Which run it is of: its colour.
    x, y : ndarray
        ``(n,)``; where either is NaN there is nothing.
    role : {"main", "raw", "reference"} (default: "main")
    mark : float, optional
        Where, on the horizontal axis, exploring ended.
    """

    name: str
    number: int
    x: Values
    y: Values
    role: str = "main"
    mark: float | None = None

    @property
    def colour(self) -> str:
        """Its run's."""
        return str(COLOURS[f"s{self.number % SERIES}"])


@contextmanager
def plotting() -> Iterator[None]:
    """Set up matplotlib for what is drawn inside; an AutoFlipError without it."""
    try:
        from matplotlib import style
    except ImportError as error:
        raise AutoFlipError(
            f'{error}; charts need the extra: pip install "flwr-autoflip[plots]"'
        ) from error
    with style.context(STYLE, after_reset=True):
        yield


# --- Kinds of charts ---


def line_chart(
    name: str,
    lines: Sequence[Line],
    label: str,
    unit: str | None = None,
    y_unit: str | None = None,
    log: bool = False,
) -> Chart:
    """Draw lines; without units the axes have whole rounds and plain numbers."""

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

        for line in lines:
            _draw_line(axes, line, log)
        axes.set_ylim(bottom=min(0, axes.dataLim.y0))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.yaxis.set_major_formatter(
            lambda y, _: f"{y:.3g}" if y_unit is None else amount(y, y_unit)
        )
        axes.set_xlabel(label)
        if log:
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            subs = (1, 2, 5) if high < 20 * low else (1,)
            axes.xaxis.set_major_locator(LogLocator(subs=subs))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=STEPS, integer=not unit))
        axes.xaxis.set_major_formatter(lambda x, _: amount(x, unit or ""))
        _draw_marks(axes, lines)

    names = ", ".join(dict.fromkeys(line.name for line in lines))
    return Chart(f"{name}: {names}", draw)


def _draw_line(axes: "Axes", line: Line, log: bool) -> None:
    drawn = np.isfinite(line.x) & np.isfinite(line.y) & ((line.x > 0) | (not log))
    x, y = np.where(drawn, line.x, np.nan), np.where(drawn, line.y, np.nan)
    style = {"label": line.name if line.role == "main" else None, **ROLES[line.role]}
    if line.number >= SERIES:
        style = {"ls": (0, (4, 2)), **style}
    if drawn.sum() == 1:  # a dot
        x, y, style = np.repeat(x[drawn], 2), np.repeat(y[drawn], 2), {"lw": 6}
    axes.plot(x, y, color=line.colour, **style)


def _draw_marks(axes: "Axes", lines: Sequence[Line]) -> None:
    """Shade what exploring cost; with several runs, a tick in each one's colour."""
    side, (low, high) = axes.get_xaxis_transform(), axes.get_xlim()
    alone = len({line.number for line in lines}) == 1
    for line in lines:
        if (at := line.mark) is None:
            continue
        if not alone:
            axes.plot([at] * 2, [0, 0.05], color=line.colour, lw=4, transform=side)
            continue
        axes.axvspan(low, at, facecolor=COLOURS["shade"], lw=0)
        axes.plot([at] * 2, [0, 1], ":", color=COLOURS["soft"], lw=1, transform=side)
        place = "left" if at < low + 0.65 * (high - low) else "right"
        axes.text(at, 0.02, " exploring ", ha=place, transform=side)


def bar_chart(
    name: str, stacks: Mapping[str, Sequence[float]], unit: str, most: float
) -> Chart:
    """Draw a column a node, a colour's parts on the former's; up to the same most."""

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        parts = np.array([*stacks.values()], float)
        tops, count = np.cumsum(parts, axis=0), parts.shape[1]
        edges = np.add.outer(np.arange(count), (0, 0.85)).ravel()
        for colour, top, low in zip(stacks, tops, tops - parts, strict=True):
            axes.stairs(
                np.stack([top, low], 1).ravel(),
                [*edges, count],
                baseline=np.repeat(low, 2),
                **{"fill": True, "fc": COLOURS[colour], "lw": 0},
            )
        axes.set_xlim(-0.5, max(1, count))
        axes.set_ylim(0, float(most) or 1.0)
        axes.set_xticks([])
        axes.set_xlabel(f"{count} nodes, most first")
        axes.yaxis.set_major_locator(MaxNLocator(3, steps=STEPS))
        axes.yaxis.set_major_formatter(lambda y, _: amount(y, unit))

    return Chart(name, draw, LOW_HEIGHT)


def heat_chart(name: str, rows: Mapping[str, Mapping[str, Values]]) -> Chart:
    """Draw rows of pixels below each other; see :func:`strip`."""

    def draw(axes: "Axes") -> None:
        image = np.concatenate([*map(_pixels, rows.values())])
        axes.imshow(image, aspect="auto", extent=(0, 1, len(rows), 0))
        axes.set_yticks(np.arange(len(rows)) + 0.5, [*map(visible, rows)], fontsize=7)
        axes.set_xticks([])
        axes.grid(False)

    return Chart(name, draw, 60 + 20 * len(rows))


def _pixels(row: Mapping[str, Values]) -> NDArray[np.uint8]:
    """Give ``(colours, n, 4)`` bytes: values in [0, 1] as opacities."""
    values = np.array([*row.values()])
    image = np.empty((*values.shape, 4), np.uint8)
    for line, colour in zip(image, row, strict=True):
        line[:, :3] = [*bytes.fromhex(COLOURS[colour][1:])]
    image[..., 3] = np.rint(255 * (FAINTEST + (1 - FAINTEST) * values.clip(0, 1)))
    return image


# --- As they are shown ---


def strip(row: Mapping[str, Values], words: str) -> str:
    """Write a row of pixels as an image that stretches to its place.

    A colour's values, ``(n,)`` in [0, 1], lie below the former's.
    """
    from matplotlib.image import imsave

    buffer = BytesIO()
    imsave(buffer, _pixels(row), format="png", metadata={"Software": ""})
    data = b64encode(buffer.getvalue()).decode()
    return (
        f'<img class="strip" alt="{escape(words)}" src="data:image/png;base64,{data}">'
    )


def svg(chart: Chart) -> str:
    """Write a chart as an element of the page, without ids, fonts and addresses."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure((WIDTH / 72, chart.height / 72))
    bottom = BOTTOM if chart.height == HEIGHT else BOTTOM / 2
    inner = (WIDTH - LEFT - RIGHT) / WIDTH, 1 - (bottom + TOP) / chart.height
    chart.draw(figure.add_axes((LEFT / WIDTH, bottom / chart.height, *inner)))
    buffer = StringIO()
    none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(buffer, metadata=none)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {chart.height}" role="img" '
        f'aria-label="{escape(chart.name)}">{_shorten(buffer.getvalue())}</svg>'
    )


def _shorten(text: str) -> str:
    """Leave of matplotlib's SVG what draws: paths and texts, to hundredths."""
    text = text[text.index("<g ") :]
    text = re.sub(r"(?s)<defs>.*?</defs>|</?(g|svg)\b[^>]*>|\n\s*", "", text)
    text = re.sub(r'<path d="[^"]*" style="fill: none"/>', "", text)  # backgrounds
    text = re.sub(r' (clip-path|transform)="[^"]*"|;? font-family: [^;"]*', "", text)
    text = re.sub(r'font: (\d+px)[^;"]*', r"font-size: \1", text)  # of older ones
    text = re.sub(r'\b[dxy]="[^"]*"', _rounded, text)
    names = {colour: f"var(--{name})" for name, colour in COLOURS.items()}
    return re.sub("#[0-9a-f]{6}", lambda m: names.get(m[0], m[0]), text)


def _rounded(attribute: re.Match[str]) -> str:
    return re.sub(r" ?\b([MLz]) ?", r"\1", re.sub(r"(\.\d\d)\d+", r"\1", attribute[0]))


def write_png(charts: Sequence[Chart], path: Path) -> None:
    """Draw charts beside and below each other, in a file whose folder exists."""
    from matplotlib.figure import Figure

    shown = charts[:MOST_CHARTS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    tall = min(TALLEST, rows * max(chart.height for chart in shown) / 55)
    figure = Figure((4.5 * columns, tall), layout="constrained")
    for number, chart in enumerate(shown, 1):
        axes = figure.add_subplot(rows, columns, number)
        chart.draw(axes)
        axes.set_title(visible(chart.name, 60))
        if number == 1 and len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend()
    figure.savefig(path, dpi=130, facecolor="white")
