"""Figures 4, 7, 8 and 9 as PNG files, from the numbers of :mod:`.series`."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from flwr_autoflip.ledger.page.curves import WINDOW

from ..methods import EVERYTHING
from ..tasks import find_task
from .series import Series

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's colours, which colour-blind people tell apart.
COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#7F7F7F")
BLUE = "#0072B2"
FIXED = {"fedavg": "#000000", "autoflip": BLUE}
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (6, 2)))
WIDTH, HEIGHT = 4.6, 3.4


def draw_variances(tasks: Mapping[str, Mapping[str, Series]], path: Path) -> None:
    """Figure 4."""

    def draw(axis: Axes, lines: Mapping[str, Series]) -> None:
        _draw_lines(axis, lines, start=1)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("round")
        axis.legend(fontsize=8)

    title = "Figure 4: variance of the nodes' updates in each round (Eq. 4)"
    _draw_tasks(tasks, title, path, draw, "variance of the nodes' updates")


def draw_curves(
    task: str, lines: Mapping[str, Mapping[str, Series]], rounds: int, path: Path
) -> None:
    """Figure 7, one task."""
    figure, axes = _panels(len(lines), 2 if len(lines) in (2, 4) else 3)
    highs = [v for p in lines.values() for s in p.values() for v in s["high"] if v]
    for axis, (title, panel) in zip(axes, lines.items(), strict=True):
        _draw_lines(axis, panel)
        axis.axvline(rounds, color="0.5", linewidth=1, linestyle=":")
        axis.set_ylim(0, 1.05 * max(highs, default=1))
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("round")
        axis.set_ylabel("top-1")
        axis.legend(fontsize=7, loc="lower right")
    _save(
        figure,
        f"Figure 7: {find_task(task).title}\nglobal test top-1 of the deployable "
        f"network,\nmean of {WINDOW} rounds; dotted: FedAvg's last round",
        path,
    )


def draw_exploration(tasks: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Figure 8."""

    def draw(axis: Axes, points: Sequence[Mapping[str, Any]]) -> None:
        fractions = sorted({point["fraction"] for point in points})
        for number, fraction in enumerate(fractions):
            mine = [point for point in points if point["fraction"] == fraction]
            _draw_points(
                axis,
                mine,
                "epochs",
                color=COLOURS[number],
                linestyle=STYLES[number],
                marker="osD^"[number % 4],
                label=f"{fraction:g} of the nodes explore",
            )
        axis.set_xticks(sorted({point["epochs"] for point in points}))
        axis.set_title(_with_seeds(axis.get_title(), points), fontsize=9)
        axis.set_xlabel("exploration epochs")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)

    title = "Figure 8: how many explore, and for how long; mean ± sd"
    _draw_tasks(tasks, title, path, draw, "global test top-1 at equal rounds")


def draw_thresholds(tasks: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Figure 9: accuracy above, what is kept below; a column a task."""
    size = (max(6.0, WIDTH * len(tasks)), 2 * HEIGHT)
    figure, axes = plt.subplots(
        2, len(tasks), figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    for (above, below), (task, points) in zip(axes.T, tasks.items(), strict=True):
        x = [point["threshold"] for point in points]
        _draw_points(above, points, "threshold", color=BLUE, marker="o")
        for key, label, colour, style in (
            ("parameters_kept", "in the network that is built", BLUE, "-"),
            ("nonzero_kept", "of these not zero", "#D55E00", "--"),
        ):
            y = [point[key] for point in points]
            below.plot(x, y, color=colour, linestyle=style, marker="o", label=label)
        above.set_title(_with_seeds(find_task(task).title, points), fontsize=9)
        above.set_ylabel("top-1 at equal rounds")
        below.set_ylabel("share of parameters")
        below.set_ylim(0, 1.05)
        below.set_xlabel("threshold T_p")
        below.set_xticks(x)
        below.legend(fontsize=8)
        above.grid(alpha=0.3)
        below.grid(alpha=0.3)
    title = "Figure 9: threshold of the paper's rule; mean ± sd over seeds"
    _save(figure, title, path)


# --- Parts of figures ---


def _draw_tasks(
    tasks: Mapping[str, Any],
    title: str,
    path: Path,
    draw: Callable[[Axes, Any], None],
    ylabel: str = "",
) -> None:
    """Draw a panel a task."""
    figure, axes = _panels(len(tasks))
    for axis, (task, found) in zip(axes, tasks.items(), strict=True):
        axis.set_title(find_task(task).title, fontsize=9)
        draw(axis, found)
    if ylabel:
        axes[0].set_ylabel(ylabel)
    _save(figure, title, path)


def _panels(count: int, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """Make a figure of as many panels as are needed."""
    columns = min(count, columns)
    rows = -(-count // columns)
    size = (max(6.0, WIDTH * columns), HEIGHT * rows + 0.7)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained"
    )
    flat = list(axes.flat)
    for axis in flat[count:]:
        axis.set_visible(False)
    return figure, flat[:count]


def _save(figure: Figure, title: str, path: Path) -> None:
    """Title and write a figure, in 128 colours: a quarter of the bytes."""
    figure.suptitle(title, fontsize=11)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    plt.close(figure)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(128).save(path, optimize=True)


def _draw_lines(axis: Axes, lines: Mapping[str, Series], start: int = 0) -> None:
    """Draw methods; FedAvg and AutoFLIP look the same everywhere."""
    others = [name for name in lines if name not in FIXED]
    for name, series in lines.items():
        number = others.index(name) if name in others else 0
        _draw_line(axis, name, series, number, start)
    axis.grid(alpha=0.3)


def _draw_line(axis: Axes, name: str, series: Series, number: int, start: int) -> None:
    """Draw a method's mean, and its range over seeds as a shade."""
    x = start + np.arange(len(series["mean"]))
    mean, low, high = (np.array(series[key], float) for key in ("mean", "low", "high"))
    fixed = name in FIXED
    colour = FIXED[name] if fixed else COLOURS[number % len(COLOURS)]
    axis.plot(
        x,
        mean,
        color=colour,
        linestyle="-" if fixed else STYLES[number % len(STYLES)],
        linewidth=2 if fixed else 1.5,
        label=EVERYTHING[name].title,
    )
    axis.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)


def _draw_points(
    axis: Axes, points: Sequence[Mapping[str, Any]], x: str, **style: Any
) -> None:
    """Draw top-1 with its deviation over seeds."""
    top1 = [point["top1"] for point in points]
    means, spread = [one["mean"] for one in top1], [one["sd"] or 0 for one in top1]
    axis.errorbar([point[x] for point in points], means, spread, capsize=3, **style)


def _with_seeds(title: str, points: Sequence[Mapping[str, Any]]) -> str:
    seeds = max(len(point["top1"]["values"]) for point in points)
    return f"{title}, {seeds} seed{'s' * (seeds > 1)}"
