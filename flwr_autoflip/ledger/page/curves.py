"""What a run had reached and spent, round by round."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ...errors import AutoFlipError
from ..headline import numbers
from ..ledger import node_rows

WINDOW = 5
"""Evaluations in a trailing mean: non-IID accuracy jumps from round to round."""
LARGEST = 1e100
"""Values beyond it have diverged, as infinite ones have; none is drawn."""


@dataclass(frozen=True)
class Curve:
    """What a run had reached and spent after each round; entry 0 is before round 1.

    Parameters
    ----------
    top1 : ndarray
        ``(rounds + 1,)`` global test accuracy of the deployable model; NaN where it
        is no number.
    dense_top1 : ndarray
        The same of the dense global model; NaN where it was not evaluated.
    bytes_moved : ndarray
        Both directions, exploration included, cumulative.
    macs : ndarray
        Of all nodes, exploration included, cumulative; NaN if no node's are known.
    """

    top1: NDArray[np.float64]
    dense_top1: NDArray[np.float64]
    bytes_moved: NDArray[np.float64]
    macs: NDArray[np.float64]

    def smooth(self) -> NDArray[np.float64]:
        """Trailing means of five evaluations; NaN before there are five."""
        return trailing_mean(self.top1)

    def mean_until(self, last_round: int) -> float:
        """Mean of the last five evaluations up to a round."""
        return float(np.mean(self.top1[: last_round + 1][-WINDOW:]))

    def rounds_to(self, target: float) -> int | None:
        """First round whose trailing mean is at least the target; None if never."""
        # A run reaches its own final mean, whichever way its sums were rounded.
        reached = np.flatnonzero(self.smooth() >= target - 1e-9)
        return int(reached[0]) if len(reached) else None


def trailing_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take trailing means of :data:`WINDOW` values; NaN before there are as many."""
    means = np.full(len(values), np.nan)
    if len(values) >= WINDOW:
        means[WINDOW - 1 :] = sliding_window_view(values, WINDOW).mean(axis=1)
    return means


def curve(rows: Sequence[Mapping[str, Any]], metric: str = "top1") -> Curve:
    """Read a ledger's rows as a curve of a metric of the server's ``evaluate_fn``.

    Raises
    ------
    AutoFlipError
        If the server never gave that metric.
    """
    server = [row for row in rows if row["phase"] == "server"]
    found = [numbers(row["metrics"]) for row in server]
    names = {name for metrics in found for name in metrics}
    if metric not in names:
        have = ", ".join(sorted(names)) or "none; give start() an evaluate_fn"
        raise AutoFlipError(
            f"the ledger's server rows have no metric {metric!r}; they have: {have}."
        )

    def column(name: str) -> NDArray[np.float64]:
        values = np.array([metrics.get(name, np.nan) for metrics in found])
        return np.where(np.abs(values) < LARGEST, values, np.nan)

    last = np.array([row["round"] for row in server])
    moved = spent_until(rows, last, "bytes_down") + spent_until(rows, last, "bytes_up")
    macs = spent_until(rows, last, "macs")
    return Curve(column(metric), column(f"dense-{metric}"), moved, macs)


def spent_until(
    rows: Iterable[Mapping[str, Any]], rounds: NDArray[np.int64], key: str
) -> NDArray[np.float64]:
    """Add up a column of node rows until the end of each round: what is known of it.

    NaN, if no node's is.
    """
    nodes = node_rows(rows)
    known = [row for row in nodes if row.get(key) is not None]
    if not known:
        return np.full(len(rounds), np.nan if nodes else 0.0)
    amounts = np.array([row[key] for row in known], float)
    sums = np.cumsum(np.bincount([row["round"] for row in known], amounts))
    return np.asarray(sums[np.minimum(rounds, len(sums) - 1)])
