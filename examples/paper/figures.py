"""Figures 4 to 9 as PNG files, from the numbers of :mod:`.series`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flwr_autoflip.ledger.page.curves import WINDOW

from .methods import EVERYTHING
from .series import Series
from .tasks import find_task
from .watch import BINS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's colours, which colour-blind people tell apart.
COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#7F7F7F")
FIXED = {"fedavg": "#000000", "autoflip": "#0072B2"}
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (6, 2)))
WIDTH, HEIGHT = 4.6, 3.4


def panels(count: int, columns: int = 3) -> tuple[Figure, list[Axes]]:
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


def save(figure: Figure, title: str, path: Path) -> None:
    """Title and write a figure."""
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_line(axis: Axes, name: str, series: Series, number: int, start: int) -> None:
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


def draw_lines(axis: Axes, lines: Mapping[str, Series], start: int = 0) -> None:
    """Draw methods; FedAvg and AutoFLIP look the same everywhere."""
    others = [name for name in lines if name not in FIXED]
    for name, series in lines.items():
        number = others.index(name) if name in others else 0
        draw_line(axis, name, series, number, start)
    axis.grid(alpha=0.3)


def draw_variances(tasks: Mapping[str, Mapping[str, Series]], path: Path) -> None:
    """Figure 4."""
    figure, axes = panels(len(tasks))
    for axis, (task, lines) in zip(axes, tasks.items(), strict=True):
        draw_lines(axis, lines, start=1)
        axis.set_ylim(bottom=0)
        axis.set_title(find_task(task).title, fontsize=9)
        axis.set_xlabel("round")
        axis.legend(fontsize=8)
    axes[0].set_ylabel("variance of the nodes' updates")
    save(figure, "Figure 4: variance of the nodes' updates in each round (Eq. 4)", path)


def draw_guidance(tasks: Mapping[str, Sequence[int]], path: Path) -> None:
    """Figure 5."""
    figure, axes = panels(len(tasks))
    edges = np.linspace(0, 1, BINS + 1)
    for axis, (task, counts) in zip(axes, tasks.items(), strict=True):
        axis.bar(edges[:-1], counts, width=1 / BINS, align="edge", color="#0072B2")
        axis.set_yscale("log")
        axis.set_ylim(bottom=0.5)  # one parameter is a bar too
        axis.set_title(find_task(task).title, fontsize=9)
        axis.set_xlabel("guidance: normalised deviation")
        axis.grid(alpha=0.3, axis="y")
    axes[0].set_ylabel("parameters (log)")
    save(
        figure,
        "Figure 5: guidance of all parameters after exploration, first seed",
        path,
    )


def draw_partitions(tasks: Mapping[str, NDArray[np.float64]], path: Path) -> None:
    """Figure 6."""
    figure, axes = panels(len(tasks))
    for axis, (task, shares) in zip(axes, tasks.items(), strict=True):
        # A root lets shares of a few per cent be seen beside whole ones.
        image = axis.imshow(
            shares.T,
            aspect="auto",
            origin="lower",
            cmap="viridis",
            norm=matplotlib.colors.PowerNorm(0.5, 0, float(shares.max())),
            interpolation="nearest",
        )
        axis.set_title(find_task(task).title, fontsize=9)
        axis.set_xlabel("node")
        axis.set_ylabel("class")
        axis.locator_params(integer=True)
        figure.colorbar(image, ax=axis, label="share of the node's examples")
    save(figure, "Figure 6: classes of the nodes' training examples, first seed", path)


def draw_curves(
    task: str, lines: Mapping[str, Mapping[str, Series]], rounds: int, path: Path
) -> None:
    """Figure 7, one task."""
    figure, axes = panels(len(lines), 2 if len(lines) in (2, 4) else 3)
    highs = [v for p in lines.values() for s in p.values() for v in s["high"] if v]
    for axis, (title, panel) in zip(axes, lines.items(), strict=True):
        draw_lines(axis, panel)
        axis.axvline(rounds, color="0.5", linewidth=1, linestyle=":")
        axis.set_ylim(0, 1.05 * max(highs, default=1))
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("round")
        axis.set_ylabel("top-1")
        axis.legend(fontsize=7, loc="lower right")
    save(
        figure,
        f"Figure 7: {find_task(task).title}\nglobal test top-1 of the deployable "
        f"network,\nmean of {WINDOW} rounds; dotted: FedAvg's last round",
        path,
    )


def draw_exploration(tasks: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Figure 8."""
    figure, axes = panels(len(tasks))
    for axis, (task, points) in zip(axes, tasks.items(), strict=True):
        fractions = sorted({point["fraction"] for point in points})
        for number, fraction in enumerate(fractions):
            mine = [point for point in points if point["fraction"] == fraction]
            axis.errorbar(
                [point["epochs"] for point in mine],
                [point["top1"]["mean"] for point in mine],
                [point["top1"]["sd"] or 0 for point in mine],
                color=COLOURS[number],
                linestyle=STYLES[number],
                marker="osD^"[number % 4],
                capsize=3,
                label=f"{fraction:g} of the nodes explore",
            )
        axis.set_xticks(sorted({point["epochs"] for point in points}))
        axis.set_title(_title_of(task, points), fontsize=9)
        axis.set_xlabel("exploration epochs")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("global test top-1 at equal rounds")
    save(figure, "Figure 8: how many explore, and for how long; mean ± sd", path)


def _title_of(task: str, points: Sequence[Mapping[str, Any]]) -> str:
    seeds = max(len(point["top1"]["values"]) for point in points)
    return f"{find_task(task).title}, {seeds} seed{'s' * (seeds > 1)}"


def draw_thresholds(tasks: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Figure 9: accuracy above, what is kept below; a column a task."""
    columns = len(tasks)
    size = (max(6.0, WIDTH * columns), 2 * HEIGHT)
    figure, axes = plt.subplots(
        2, columns, figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    for (above, below), (task, points) in zip(axes.T, tasks.items(), strict=True):
        x = [point["threshold"] for point in points]
        above.errorbar(
            x,
            [point["top1"]["mean"] for point in points],
            [point["top1"]["sd"] or 0 for point in points],
            color="#0072B2",
            marker="o",
            capsize=3,
        )
        for key, label, colour, style in (
            ("parameters_kept", "in the network that is built", "#0072B2", "-"),
            ("nonzero_kept", "of these not zero", "#D55E00", "--"),
        ):
            y = [point[key] for point in points]
            below.plot(x, y, color=colour, linestyle=style, marker="o", label=label)
        above.set_title(_title_of(task, points), fontsize=9)
        above.set_ylabel("top-1 at equal rounds")
        below.set_ylabel("share of parameters")
        below.set_ylim(0, 1.05)
        below.set_xlabel("threshold T_p")
        below.set_xticks(x)
        below.legend(fontsize=8)
        above.grid(alpha=0.3)
        below.grid(alpha=0.3)
    save(figure, "Figure 9: threshold of the paper's rule; mean ± sd over seeds", path)
