"""PruneFL (Jiang et al., TNNLS 2022, arXiv:1909.12326): baseline, single weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import AutoFlipError
from ...graph.layout import Arrays, Layout
from ...graph.plan import Mask, Plan, dense_plan
from ..base import Explored, Method, Order, Round
from ..threshold import Compression, ThresholdLike, keep_top, parse_target
from ..units import weight_tensors


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
        """Give ``t_j`` for each tensor of :func:`.weight_tensors`."""
        return {
            t.name: self.per_value + self.per_mac * t.macs_per_weight
            for t in weight_tensors(layout)
        }


@dataclass(frozen=True)
class PruneFL(Method[Explored]):
    """Keep the weights that lower the loss most for the time they cost.

    Round 1 is initial pruning at one client, see :mod:`.initial_pruning`. Then, every
    ``interval`` rounds, the mask is adjusted to gradients that the round's nodes send
    beside their values.

    Parameters
    ----------
    threshold : str or Compression, optional
        Keep exactly so many parameters, such as ``"2x"``; left out, the density is
        free, as in the paper.
    interval : int (default: 50)
        Adjust after every so many rounds.
    fraction : float (default: 0.3)
        Ratio of kept weights that are candidates in the beginning.
    half_life : float (default: 10000.0)
        Rounds in which ``fraction`` halves.
    time : RoundTime

    Raises
    ------
    AutoFlipError
        If a value is out of range, or the threshold is another one.

    Notes
    -----
    Where we differ: nodes send gradients of kept weights, too, since only plain SGD
    with a known learning rate lets a server read them off an update, and only those of
    the adjusting round, since our nodes keep nothing between rounds. A weight that
    comes back has the value it had before the run, not when it was pruned.
    """

    threshold: ThresholdLike | None = None
    interval: int = 50
    fraction: float = 0.3
    half_life: float = 10_000.0
    time: RoundTime = field(default_factory=RoundTime)

    def __post_init__(self) -> None:
        if self.interval < 1 or not 0 <= self.fraction < 1:
            raise AutoFlipError(
                "interval must be at least 1 and fraction in [0, 1), got "
                f"{self.interval} and {self.fraction}."
            )
        target = parse_target(None, self.threshold)
        if not isinstance(target, Compression | None):
            raise AutoFlipError(
                "PruneFL prunes single weights, by its own density or to a number of "
                f"parameters such as threshold='2x', got {self.threshold!r}."
            )

    def begin(self, layout: Layout, weights: Arrays) -> tuple[Explored, Arrays]:
        """Begin with the dense model; see :meth:`.Method.begin`."""
        self._num_kept(layout)
        return Explored(dense_plan(layout)), weights

    def order(self, state: Explored, server_round: int, nodes: Sequence[int]) -> Order:
        """Prune at one client, then train under the mask; see :meth:`.Method.order`."""
        if not state.explored:
            return Order(state.plan, who=1, dtype="float32", whole=True)
        if server_round % self.interval:
            return Order(state.plan)
        return Order(state.plan, payload="gradients")

    def learn(self, state: Explored, done: Round) -> tuple[Explored, Arrays]:
        """Read off the one client's mask, or adjust it; see :meth:`.Method.learn`.

        A weight that did not move at all at the one client is one that it had pruned
        (or one that no gradient reached: as good as pruned).

        Raises
        ------
        AutoFlipError
            If no node carries the dense model.
        """
        if state.explored and done.order.payload != "gradients":
            return state, done.weights
        if not done.results:
            raise AutoFlipError(
                "no node can carry the dense model, from which PruneFL's first client "
                "prunes; other methods can do without."
            )
        layout, kept = state.plan.layout, self._num_kept(state.plan.layout)
        # Summed over nodes, weighed as values are. Squared steps of one client stand
        # for squared gradients: the same, but for a factor.
        squares = {
            name: np.asarray(
                sum(r.num_examples * np.float64(r.report[name]) for r in done.results)
            )
            for name in done.results[0].report
        }
        weights = {t.name: done.weights[t.name] for t in weight_tensors(layout)}
        mask, fraction = {}, self.fraction
        for name, array in weights.items():
            used = state.plan.dense_mask(name) if state.explored else squares[name] > 0
            mask[name] = used if used.any() else keep_top(np.abs(array), 1)
        if state.explored:
            fraction *= 0.5 ** (done.number / self.half_life)
        if state.explored or kept is not None:
            time = self.time.of_weights(layout)
            fixed = self.time.fixed
            mask = adjust(weights, squares, mask, time, fixed, fraction, kept)
        plan = Plan(layout, state.plan.keep, mask)
        return Explored(plan, explored=True), done.weights

    def _num_kept(self, layout: Layout) -> int | None:
        compression = parse_target(None, self.threshold)
        if not isinstance(compression, Compression):
            return None
        weights = sum(t.size for t in weight_tensors(layout))
        rest = layout.num_parameters - weights
        kept = int(layout.num_parameters / compression.factor) - rest
        if kept < len(weight_tensors(layout)):
            raise AutoFlipError(
                f"{compression} is out of PruneFL's reach: {rest} of "
                f"{layout.num_parameters} parameters are biases or normalisation, "
                "which it keeps. Choose a smaller factor."
            )
        return kept


def adjust(
    weights: Arrays,
    squared_gradients: Arrays,
    mask: Mask,
    time_per_weight: Mapping[str, float],
    t_const: float,
    fraction: float,
    kept: int | None = None,
) -> dict[str, NDArray[np.bool_]]:
    """Choose the mask with the largest gain a second: PruneFL's adaptive pruning.

    Maximises ``sum_kept g_j^2 / (t_const + sum_kept t_j)`` (arXiv:1909.12326).
    Candidates are all pruned weights and, of those in use, the ``fraction`` of each
    tensor with the smallest ``|w|``; the others are kept. Candidates come in order of
    ``g^2 / t``, as long as that exceeds the ratio so far: then no other choice among
    them has a larger one.

    Parameters
    ----------
    weights, squared_gradients, mask : mapping of str to ndarray
        By tensor: values, gradients' squares, and which weights are in use. Squares of
        further tensors count as kept and as costing no time.
    time_per_weight, t_const : mapping of str to float, float
        Seconds, above 0, of a weight of each tensor, and of a round without weights.
    fraction : float
        In [0, 1).
    kept : int, optional
        Keep exactly so many instead, however small their gain; only as many of those
        in use are kept anyway as leave the ``fraction`` of ``kept`` to candidates. Not
        in the paper, which has an upper limit only.

    Returns
    -------
    dict of str to ndarray
        New mask, with at least one weight of each tensor.

    Examples
    --------
    Ratio 4 / (1 + 1) = 2; the pruned weight adds 9 a second, the other 1:

    >>> w, g2 = {"w": np.array([5.0, 1.0, 0.0])}, {"w": np.array([4.0, 1.0, 9.0])}
    >>> adjust(w, g2, {"w": np.array([True, True, False])}, {"w": 1.0}, 1.0, 0.5)
    {'w': array([ True, False,  True])}
    """
    if kept is not None:
        in_use = sum(int(m.sum()) for m in mask.values())
        fraction = 1 - (1 - fraction) * min(1.0, kept / in_use)
    always = {}
    for name, used in mask.items():
        ratio = fraction * int(used.sum())
        num = math.ceil(ratio - 1e-9) if kept is not None else int(ratio + 1e-9)
        sizes = np.where(used, np.abs(weights[name]), -1.0)
        always[name] = keep_top(sizes, max(1, int(used.sum()) - num))

    def flat(arrays: Arrays) -> NDArray[Any]:
        return np.concatenate([arrays[name].ravel() for name in mask])

    lengths = [used.size for used in mask.values()]
    chosen, gain = flat(always), flat(squared_gradients)
    time = np.repeat([time_per_weight[name] for name in mask], lengths)
    candidates = np.flatnonzero(~chosen)
    # Of equal gains a second the larger weight comes first.
    keys = -np.abs(flat(weights)[candidates]), -gain[candidates] / time[candidates]
    candidates = candidates[np.lexsort(keys)]
    if kept is None:
        others = [g.sum() for n, g in squared_gradients.items() if n not in mask]
        top = float(gain[chosen].sum(dtype=np.float64) + sum(others))
        bottom = t_const + float(time[chosen].sum())
        count = _count_worth(gain[candidates], time[candidates], top, bottom)
    else:
        count = max(0, kept - int(chosen.sum()))
    chosen[candidates[:count]] = True
    parts = np.split(chosen, np.cumsum(lengths)[:-1])
    return {n: p.reshape(mask[n].shape) for n, p in zip(mask, parts, strict=True)}


def _count_worth(
    gain: NDArray[np.floating], time: NDArray[np.float64], top: float, bottom: float
) -> int:
    """Count the leading candidates that raise the ratio ``top / bottom``."""
    tops = np.cumsum(np.append(top, gain))[:-1]
    bottoms = np.cumsum(np.append(bottom, time))[:-1]
    stop = gain * bottoms <= tops * time
    return int(np.argmax(stop)) if stop.any() else len(gain)
