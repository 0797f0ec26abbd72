"""From a ledger to curves, figures to compare, and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ledger import total

WINDOW = 5
"""Evaluations in a trailing mean: non-IID accuracy jumps from round to round."""


@dataclass(frozen=True)
class Curve:
    """What a run had reached and spent after each round; entry 0 is before round 1.

    Parameters
    ----------
    top1 : ndarray
        ``(rounds + 1,)`` global test accuracy of the deployable model.
    dense_top1 : ndarray
        The same of the dense global model; NaN where it was not evaluated.
    bytes_moved : ndarray
        Both directions, exploration included, cumulative.
    macs : ndarray
        Of all nodes, exploration included, cumulative.
    """

    top1: NDArray[np.float64]
    dense_top1: NDArray[np.float64]
    bytes_moved: NDArray[np.float64]
    macs: NDArray[np.float64]

    def smooth(self) -> NDArray[np.float64]:
        """Trailing means of five evaluations; NaN before there are five."""
        sums = np.cumsum(np.insert(self.top1, 0, 0.0))
        means = np.full(len(self.top1), np.nan)
        means[WINDOW - 1 :] = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW
        return means

    def mean_until(self, last_round: int) -> float:
        """Mean of the last five evaluations up to a round."""
        return float(np.mean(self.top1[: last_round + 1][-WINDOW:]))

    def rounds_to(self, target: float) -> int | None:
        """First round whose trailing mean is at least the target; None if never."""
        # A run reaches its own final mean, whichever way its sums were rounded.
        reached = np.flatnonzero(self.smooth() >= target - 1e-9)
        return int(reached[0]) if len(reached) else None


def curve(rows: Sequence[Mapping[str, Any]], metric: str = "top1") -> Curve:
    """Read a ledger's rows as a curve.

    Parameters
    ----------
    rows : sequence of mapping
        From :func:`flwr_autoflip.ledger.read_ledger`.
    metric : str (default: "top1")
        Name the server's ``evaluate_fn`` gives to accuracy.

    Returns
    -------
    Curve
    """
    server = [row for row in rows if row["phase"] == "server"]
    nodes = [row for row in rows if row["phase"] != "server"]
    moved, macs = [], []
    for row in server:
        down, up, spent = (
            total(nodes, key, last_round=row["round"])
            for key in ("bytes_down", "bytes_up", "macs")
        )
        moved.append(down + up)
        macs.append(spent)
    return Curve(
        np.array([row["metrics"][metric] for row in server], float),
        np.array(
            [row["metrics"].get(f"dense-{metric}", np.nan) for row in server], float
        ),
        np.array(moved, float),
        np.array(macs, float),
    )


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
