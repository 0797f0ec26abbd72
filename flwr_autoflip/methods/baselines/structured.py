"""Automatic Structured Pruning (Nguyen, Le, Avila, arXiv:2411.01759): baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import AutoFlipError
from ...graph.layout import Arrays, Layout
from ...graph.plan import Plan, dense_plan, keep_from_bool
from ..base import Method, Order, Round, State
from ..guidance import split_by_group, sum_by_unit
from ..rescale import rescale_fan_in
from ..threshold import Compression, MacRatio, ThresholdLike, keep_top, parse_target
from ..units import unit_plan, weight_tensors


@dataclass(frozen=True, kw_only=True)
class StructuredState(State):
    """What :class:`Structured` knows; its plan is the one that was trained last.

    The next round trains ``following``, which is, or was, new in round ``since``. A
    smaller network that starts afresh starts from ``initial``.
    """

    following: Plan
    since: int = 0
    initial: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Structured(Method[StructuredState]):
    """Keep units whose size is not far from their layer's mean, on either side.

    Parameters
    ----------
    k : float (default: 2.2)
        Standard deviations; the authors choose 2.0 to 2.5 by hand, 2.2 for FEMNIST.
    macs : float, optional
        Keep so many units, those nearest the mean, from ``first_round`` on, instead of
        those within ``k``: this ratio, in (0, 1], of the MACs that can shrink.
    threshold : str, Compression, MacRatio or mapping, optional
        Another way to say that: ``"2x"``, ``"even-macs:0.25"`` or units a group.
    first_round, last_round : int (default: 2, 51)
        Rounds at whose start it prunes. The authors count from 0, so theirs are 1 to
        50; their first round trains the whole model.
    patience : int (default: 3)
        Stop after so many rounds without change.
    restart : bool (default: True)
        Throw the weights away when units are pruned, and start the smaller network
        afresh.

    Raises
    ------
    AutoFlipError
        If ``k`` is out of range, or the target is another one.

    Notes
    -----
    Where we differ: the authors prune convolutions only and draw new random weights
    for the smaller network; we prune every group, and start again from the initial
    values of what is kept, rescaled. A server optimizer's momentum is not thrown away.
    """

    k: float = 2.2
    macs: float | None = None
    threshold: ThresholdLike | None = None
    first_round: int = 2
    last_round: int = 51
    patience: int = 3
    restart: bool = True

    def __post_init__(self) -> None:
        target = parse_target(self.macs, self.threshold)
        if not isinstance(target, Compression | MacRatio | Mapping | None):
            raise AutoFlipError(
                "Structured prunes by its own limits, or to a target: macs=0.25, "
                f"threshold='2x' or units a group, got {target!r}."
            )
        if not self.k > 0:
            raise AutoFlipError(f"k must be above 0, got {self.k}.")

    def begin(self, layout: Layout, weights: Arrays) -> tuple[StructuredState, Arrays]:
        """Begin with the dense model; see :meth:`.Method.begin`."""
        plan, initial = dense_plan(layout), weights if self.restart else {}
        return StructuredState(plan, following=plan, initial=initial), weights

    def order(
        self, state: StructuredState, server_round: int, nodes: Sequence[int]
    ) -> Order:
        """Train what is left, afresh if that is new; see :meth:`.Method.order`."""
        if not self.restart or not _is_smaller(state.following, state.plan):
            return Order(state.following)
        afresh = rescale_fan_in(state.initial, state.following)
        return Order(state.following, weights=afresh)

    def learn(
        self, state: StructuredState, done: Round
    ) -> tuple[StructuredState, Arrays]:
        """Prune what is left a little more; see :meth:`.Method.learn`."""
        plan, next_round = done.order.plan, done.number + 1
        quiet = next_round - max(state.since, self.first_round - 1)
        following, since = plan, state.since
        inside = self.first_round <= next_round <= self.last_round
        if inside and quiet <= self.patience:
            smaller = self._smaller(plan, done.weights)
            if _is_smaller(smaller, plan):
                following, since = smaller, next_round
        after = replace(state, plan=plan, following=following, since=since)
        return after, done.weights

    def _smaller(self, plan: Plan, weights: Arrays) -> Plan:
        layout = plan.layout
        left, sums = split_by_group(layout, plan.alive), _unit_sums(plan, weights)
        scores = {name: -_distance(sums[name], alive) for name, alive in left.items()}
        target = parse_target(self.macs, self.threshold)
        if target is None:
            near = {n: (s >= -self.k) | keep_top(s, 1) for n, s in scores.items()}
            return Plan(layout, keep_from_bool(near))
        return unit_plan(layout, scores, target) if plan.alive.all() else plan


def _is_smaller(one: Plan, other: Plan) -> bool:
    return bool(one.alive.sum() < other.alive.sum())


def _unit_sums(plan: Plan, weights: Arrays) -> dict[str, NDArray[np.float64]]:
    """Sum ``|w|`` over a unit's kernels, as far as the plan keeps them."""
    layout = plan.layout
    sizes = {
        t.name: np.abs(weights[t.name]) * plan.dense_mask(t.name)
        for t in weight_tensors(layout)
    }
    return split_by_group(layout, sum_by_unit(layout, sizes))


def _distance(sums: NDArray[Any], left: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give ``|s - mean| / sd`` among the units that are left, infinity for others."""
    among = sums[left]
    away = np.abs(sums - among.mean()) / (float(among.std()) or 1.0)
    return np.where(left, away, np.inf)
