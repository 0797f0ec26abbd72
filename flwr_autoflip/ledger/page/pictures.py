"""The page's charts as PNGs, by matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import AutoFlipError, visible
from .curves import WINDOW, Curve
from .runs import Run, node_figures, shares_kept, units_kept

TALLEST = 100
"""Inches of a picture."""
MOST_GROUPS = 60
"""Histograms of a run."""


def _words(text: str) -> str:
    """Make a text of any origin one that matplotlib draws and does not read as TeX."""
    return visible(text, 80).replace("$", r"\$")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise AutoFlipError(
            f'{error}; PNGs need the extra: pip install "flwr-autoflip[plots]"'
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    _pyplot().close(figure)


def draw_all(runs: Sequence[Run], stem: Path) -> list[Path]:
    """Draw every chart that the runs have data for.

    Parameters
    ----------
    runs : sequence of Run
    stem : Path
        Paths without their ends: ``report`` for ``report-curves.png`` and so on.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    AutoFlipError
        Without matplotlib, which comes with ``flwr-autoflip[plots]``.
    """
    _pyplot()
    written = []
    curves = {run.name: [run.curve] for run in runs if run.curve is not None}
    if curves:
        written.append(stem.with_name(f"{stem.name}-curves.png"))
        draw_curves(curves, written[-1])
    for kind, draw, wanted in (
        ("units", draw_units, [run for run in runs if units_kept(run)]),
        ("guidance", draw_guidance, [run for run in runs if _guidance(run)]),
        ("nodes", draw_nodes, [run for run in runs if run.nodes]),
    ):
        if wanted:
            written.append(stem.with_name(f"{stem.name}-{kind}.png"))
            draw(wanted, written[-1])
    return written


def draw_units(runs: Sequence[Run], path: Path) -> None:
    """Draw units kept per group over rounds, a heat map a run."""
    plt = _pyplot()
    kept = [shares_kept(run) for run in runs]
    rows = [0.3 * len(groups) + 0.9 for groups in kept]
    size = 9, min(sum(rows) + 0.5, TALLEST)
    figure, axes = plt.subplots(
        len(runs), 1, figsize=size, squeeze=False, height_ratios=rows
    )
    for axis, run, groups in zip(axes[:, 0], runs, kept, strict=True):
        image = axis.imshow(
            np.array([*groups.values()]), aspect="auto", cmap="Blues", vmin=0, vmax=1,
            interpolation="nearest", extent=(-0.5, run.rounds + 0.5, len(groups), 0),
        )  # fmt: skip
        axis.set_yticks(
            np.arange(len(groups)) + 0.5, [*map(_words, groups)], fontsize=8
        )
        axis.set_title(f"{_words(run.name)}: share of units kept", fontsize=10)
        axis.set_xlabel("round")
        figure.colorbar(image, ax=axis)
    figure.tight_layout()
    _save(figure, path)


def _guidance(run: Run) -> dict[str, Any]:
    found = [row["importance"] for row in run.plans if row.get("importance")]
    return dict(list(found[0].items())[:MOST_GROUPS]) if found else {}


def draw_guidance(runs: Sequence[Run], path: Path) -> None:
    """Draw how guidance is spread over each group's units, kept and pruned."""
    plt = _pyplot()
    drawn = [(run.name, *item) for run in runs for item in _guidance(run).items()]
    rows = -(-len(drawn) // 3)
    size = 11, min(2.2 * rows + 0.4, TALLEST)
    figure, axes = plt.subplots(rows, 3, figsize=size, squeeze=False)
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    for axis, (run, group, counts) in zip(axes.flat, drawn, strict=False):
        edges = np.linspace(0, counts["top"] or 1.0, len(counts["kept"]) + 1)
        step = edges[1] - edges[0]
        kept, gone = counts["kept"], counts["pruned"]
        axis.bar(edges[:-1], kept, step, align="edge", color="C0", label="kept")
        axis.bar(
            edges[:-1], gone, step, kept, align="edge", color="0.7", label="pruned"
        )
        title = f"{run}: {group}" if len(runs) > 1 else group
        axis.set_title(_words(title), fontsize=9)
    axes[0, 0].legend(fontsize=8)
    figure.suptitle("Units by mean guidance, first plan", fontsize=11)
    figure.tight_layout()
    _save(figure, path)


def draw_nodes(runs: Sequence[Run], path: Path) -> None:
    """Draw bytes and seconds of each node, most first."""
    plt = _pyplot()
    figure, axes = plt.subplots(
        len(runs), 2, figsize=(11, min(2.6 * len(runs) + 0.4, TALLEST)),
        squeeze=False, sharey="col",
    )  # fmt: skip
    for (left, right), run in zip(axes, runs, strict=True):
        nodes = node_figures(run)
        place = np.arange(len(nodes))
        down = np.array([node["bytes_down"] for node in nodes]) / 1e6
        up = np.array([node["bytes_up"] for node in nodes]) / 1e6
        left.bar(place, down, color="C0", label="to the node")
        left.bar(place, up, bottom=down, color="C2", label="from the node")
        left.set_ylabel("MB")
        right.bar(place, sorted((n["seconds"] for n in nodes), reverse=True))
        right.set_ylabel("seconds")
        for axis in (left, right):
            axis.set_title(_words(run.name), fontsize=9)
            axis.set_xlabel(f"{len(nodes)} nodes, most first")
            axis.set_xticks([])
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def draw_curves(
    curves: Mapping[str, Sequence[Curve]], path: Path, *, target: float | None = None
) -> None:
    """Draw accuracy against rounds, bytes and MACs; mean and range over seeds.

    Parameters
    ----------
    curves : mapping of str to sequence of Curve
        Method name to one curve a seed.
    path : Path
        PNG to write.
    target : float, optional
        Accuracy to mark.

    Raises
    ------
    AutoFlipError
        Without matplotlib, which comes with ``flwr-autoflip[plots]``.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True)
    titles = ("round", "bytes moved (MB)", "client compute (GMACs)")
    for number, (name, runs) in enumerate(curves.items()):
        length = min(len(run.top1) for run in runs)
        smooth = np.stack([run.smooth()[:length] for run in runs])
        mean = smooth.mean(axis=0)
        costs = (
            np.arange(length, dtype=float),
            np.mean([run.bytes_moved[:length] for run in runs], axis=0) / 1e6,
            np.mean([run.macs[:length] for run in runs], axis=0) / 1e9,
        )
        for axis, x in zip(axes, costs, strict=True):
            axis.plot(x, mean, color=f"C{number}", label=_words(name), linewidth=1.8)
            axis.fill_between(
                x,
                smooth.min(axis=0),
                smooth.max(axis=0),
                color=f"C{number}",
                alpha=0.15,
            )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
        if target is not None:
            axis.axhline(target, color="0.4", linestyle=":", linewidth=1)
    for axis in axes[1:]:
        axis.set_xscale("log")
    axes[0].set_ylabel(f"global test top-1, mean of {WINDOW} rounds")
    axes[0].legend(loc="lower right", fontsize=9)
    figure.suptitle("Exploration included in every total", fontsize=11)
    figure.tight_layout()
    _save(figure, path)
