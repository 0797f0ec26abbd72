"""The page's charts as PNGs, by matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import AutoFlipError
from .curves import WINDOW, Curve
from .runs import Run


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
    ImportError
        Without matplotlib, which comes with ``flwr-autoflip[examples]``.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

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
            axis.plot(x, mean, color=f"C{number}", label=name, linewidth=1.8)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
