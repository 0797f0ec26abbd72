"""PruneFL (Jiang et al., TNNLS 2022, arXiv:1909.12326): baseline, single weights.

Initial pruning at one client is :mod:`.initial_pruning`; it runs as the exploration of
one explorer. Then, every ``interval`` rounds, the mask is adjusted to gradients that
the round's nodes send beside their values.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import AutoFlipError
from ...graph.layout import Arrays, Layout
from ...graph.plan import Mask, Plan, dense_plan
from ..guidance import Report
from ..policy import Policy, Previous, weight_tensors
from ..threshold import Compression, keep_top


@dataclass(frozen=True)
class RoundTime:
    """Seconds of a round: ``fixed`` and ``t_j = per_value + per_mac * MACs`` a weight.

    The defaults are what the authors measured on a Raspberry Pi for FEMNIST, five
    local steps of 20 examples (their ``configs/femnist.py``). They list one ``t_j`` a
    layer; ``per_mac`` is that of their second convolution over its 196 places, and
    gives their linear layers' ``t_j`` within 13 % (their first layer they measured as
    costing nothing). Only ratios matter.

    Parameters
    ----------
    fixed : float
        T_const.
    per_value : float
        To send one value.
    per_mac : float
        To train one weight at one place.
    """

    fixed: float = 6.246
    per_value: float = 5.562e-6
    per_mac: float = 1.811e-7

    def of_weights(self, layout: Layout) -> dict[str, float]:
        """Give ``t_j`` for each tensor of :func:`.base.weight_tensors`."""
        return {
            t.name: self.per_value + self.per_mac * t.macs_per_weight
            for t in weight_tensors(layout)
        }


@dataclass(frozen=True)
class PruneFl(Policy):
    """Keep the weights that lower the loss most for the time they cost.

    Parameters
    ----------
    threshold : Compression, optional
        Keep exactly so many parameters; left out, the density is free, as in the paper.
    interval : int (default: 50)
        Adjust after every so many rounds.
    fraction : float (default: 0.3)
        Share of kept weights that are candidates in the beginning.
    half_life : float (default: 10000.0)
        Rounds in which ``fraction`` halves.
    time : RoundTime

    Notes
    -----
    Where we differ: nodes send gradients of kept weights, too, since only plain SGD
    with a known learning rate lets a server read them off an update, and only those of
    the adjusting round, since our nodes keep nothing between rounds. A weight that
    comes back has the value it had before the run, not when it went.
    """

    threshold: Compression | None = None
    interval: int = 50
    fraction: float = 0.3
    half_life: float = 10_000.0
    time: RoundTime = field(default_factory=RoundTime)

    explores = True
    max_explorers = 1
    renewed = "round"

    def __post_init__(self) -> None:
        if self.interval < 1 or not 0 <= self.fraction < 1:
            raise AutoFlipError(
                "interval must be at least 1 and fraction in [0, 1), got "
                f"{self.interval} and {self.fraction}."
            )

    def probes(self, server_round: int) -> bool:
        """Ask for gradients every ``interval`` rounds."""
        return server_round % self.interval == 0

    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
        previous: Previous | None = None,
    ) -> Plan:
        """Make the mask of initial pruning, then adjust it; see :class:`.base.Policy`.

        A weight that did not move at all at the one client is one that it had pruned
        (or one that no gradient reached: as good as pruned).
        """
        names = [t.name for t in weight_tensors(layout)]
        if previous is not None and not reports:
            return previous.plan
        squares = {n: np.sum([r[n] for r in reports], 0, float) for n in reports[0]}
        kept = self._kept_weights(layout)
        if previous is None:
            mask = {name: squares[name] > 0 for name in names}
        else:
            mask = {name: previous.plan.dense_mask(name) for name in names}
        mask = _with_one(mask, weights)
        if previous is not None or kept is not None:
            # Squared steps of the one client stand for squared gradients: the same,
            # but for a factor.
            mask = adjust(
                {name: weights[name] for name in names},
                squares,
                mask,
                self.time.of_weights(layout),
                self.time.fixed,
                self.fraction * 0.5 ** (max(0, server_round - 1) / self.half_life),
                kept,
            )
        return Plan(layout, dense_plan(layout).keep, mask)

    def _kept_weights(self, layout: Layout) -> int | None:
        if self.threshold is None:
            return None
        weights = sum(t.size for t in weight_tensors(layout))
        rest = layout.num_parameters - weights
        kept = int(layout.num_parameters / self.threshold.factor) - rest
        if kept < len(weight_tensors(layout)):
            raise AutoFlipError(
                f"{self.threshold} is out of PruneFL's reach: {rest} of "
                f"{layout.num_parameters} parameters are biases or normalisation, "
                "which it keeps. Choose a smaller factor."
            )
        return kept


def adjust(
    weights: Arrays,
    squared_gradients: Mapping[str, NDArray[Any]],
    mask: Mask,
    time_per_weight: Mapping[str, float],
    t_const: float,
    fraction: float,
    kept: int | None = None,
) -> dict[str, NDArray[np.bool_]]:
    """Choose the mask with the largest gain a second: PruneFL's adaptive pruning.

    Maximises ``sum_kept g_j^2 / (t_const + sum_kept t_j)`` (arXiv:1909.12326).
    Candidates are all weights that had gone and, of those in use, the ``fraction`` of
    each tensor with the smallest ``|w|``; the others stay. Candidates come in order of
    ``g^2 / t``, as long as that exceeds the ratio so far: then no other choice among
    them has a larger one.

    Parameters
    ----------
    weights : mapping of str to ndarray
        Tensors whose single weights may go, dense.
    squared_gradients : mapping of str to ndarray
        Same shapes, at least 0. Further names count as kept and as costing no time.
    mask : Mask
        Weights in use.
    time_per_weight : mapping of str to float
        Seconds, above 0, of a weight of each tensor.
    t_const : float
        Seconds of a round without weights, above 0.
    fraction : float
        In [0, 1).
    kept : int, optional
        Keep exactly so many instead, however small their gain; only as many of those
        in use stay anyway as leave the ``fraction`` of ``kept`` to candidates. Not in
        the paper, which has an upper limit only.

    Returns
    -------
    dict of str to ndarray
        New mask; at least one weight of each tensor stays.

    Examples
    --------
    Ratio 4 / (1 + 1) = 2; the weight that had gone adds 9 a second, the other 1:

    >>> w, g2 = {"w": np.array([5.0, 1.0, 0.0])}, {"w": np.array([4.0, 1.0, 9.0])}
    >>> adjust(w, g2, {"w": np.array([True, True, False])}, {"w": 1.0}, 1.0, 0.5)
    {'w': array([ True, False,  True])}
    """
    if kept is not None:
        in_use = sum(int(m.sum()) for m in mask.values())
        fraction = 1 - (1 - fraction) * min(1.0, kept / in_use)
    new = {}
    for name, used in mask.items():
        gone = fraction * int(used.sum())
        count = math.ceil(gone - 1e-9) if kept is not None else int(gone + 1e-9)
        sizes = np.where(used, np.abs(weights[name]), -1.0)
        new[name] = keep_top(sizes, max(1, int(used.sum()) - count))
    candidates = {name: np.flatnonzero(~stays) for name, stays in new.items()}
    owner = np.repeat(np.arange(len(new)), [len(c) for c in candidates.values()])
    where = np.concatenate(list(candidates.values()))
    gain, size = (
        np.concatenate([of[n].ravel()[c] for n, c in candidates.items()])
        for of in (squared_gradients, weights)
    )
    time = np.array([time_per_weight[name] for name in new])[owner]
    order = np.lexsort((-np.abs(size), -gain / time))  # ties: the larger weight
    if kept is None:
        start = _ratio_of(new, squared_gradients, time_per_weight, t_const)
        count = _count_worth(gain[order], time[order], *start)
    else:
        count = max(0, kept - sum(int(stays.sum()) for stays in new.values()))
    for index, stays in enumerate(new.values()):
        added = order[:count][owner[order[:count]] == index]
        stays.flat[where[added]] = True
    return new


def _ratio_of(
    stays: Mask,
    squared_gradients: Mapping[str, NDArray[Any]],
    time_per_weight: Mapping[str, float],
    t_const: float,
) -> tuple[float, float]:
    """Sum the gain and the time of what stays anyway."""
    gain, time = 0.0, t_const
    for name, squares in squared_gradients.items():
        chosen = stays.get(name)
        gain += float((squares if chosen is None else squares[chosen]).sum())
    for name, chosen in stays.items():
        time += time_per_weight[name] * int(chosen.sum())
    return gain, time


def _count_worth(
    gain: NDArray[np.float64], time: NDArray[np.float64], top: float, bottom: float
) -> int:
    """Count the leading candidates that raise the ratio ``top / bottom``."""
    tops = top + np.concatenate([[0.0], np.cumsum(gain)[:-1]])
    bottoms = bottom + np.concatenate([[0.0], np.cumsum(time)[:-1]])
    stop = gain * bottoms[: len(gain)] <= tops[: len(gain)] * time
    return int(np.argmax(stop)) if stop.any() else len(gain)


def _with_one(
    mask: Mapping[str, NDArray[np.bool_]], weights: Arrays
) -> dict[str, NDArray[np.bool_]]:
    """Let the largest weight of an emptied tensor stay."""
    return {
        name: used if used.any() else keep_top(np.abs(weights[name]), 1)
        for name, used in mask.items()
    }
