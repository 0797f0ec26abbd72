"""Automatic Structured Pruning (Nguyen, Le, Avila, arXiv:2411.01759): baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import AutoFlipError
from ...graph.layout import Arrays, Layout
from ...graph.plan import Plan, dense_plan, keep_from_bool
from ..guidance import Report, split_by_group, sum_by_unit
from ..policy import (
    OnChange,
    Policy,
    Previous,
    UnitCounts,
    keep_least,
    unit_plan,
    weight_tensors,
)
from ..threshold import Compression, MacShare, Threshold


@dataclass(frozen=True)
class Structured(Policy):
    """Keep units whose size is not far from their layer's mean, on either side.

    Parameters
    ----------
    k : float (default: 2.2)
        Standard deviations; the authors choose 2.0 to 2.5 by hand, 2.2 for FEMNIST.
    threshold : Compression, MacShare or mapping of str to int, optional
        Keep so many, those nearest the mean, from ``first_round`` on, instead of those
        within ``k``.
    first_round, last_round : int (default: 2, 51)
        Rounds at whose start it prunes. The authors count from 0, so theirs are 1 to
        50; their first round trains the whole model.
    patience : int (default: 3)
        Stop after so many rounds without change.
    restart : bool (default: True)
        Throw the weights away when units go, and start the smaller network afresh.

    Notes
    -----
    Where we differ: the authors prune convolutions only and draw new random weights
    for the smaller network; we prune every group, and start again from the initial
    values of what stays. A server optimizer's momentum is not thrown away.
    """

    k: float = 2.2
    threshold: Threshold | UnitCounts | None = None
    first_round: int = 2
    last_round: int = 51
    patience: int = 3
    restart: bool = True

    renewed = "round"

    def __post_init__(self) -> None:
        allowed = (Compression, MacShare, Mapping)
        if self.threshold is not None and not isinstance(self.threshold, allowed):
            raise AutoFlipError(
                "policy='structured' takes its own limits (threshold='auto') or a "
                f"target: '2x', 'macs:0.25' or units a group, got {self.threshold!r}."
            )
        if self.k <= 0:
            raise AutoFlipError(f"k must be above 0, got {self.k}.")

    @property
    def on_change(self) -> OnChange:
        """What becomes of weights when the plan changes."""
        return "restart" if self.restart else "keep"

    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
        previous: Previous | None = None,
    ) -> Plan:
        """Prune what is left a little more; see :class:`.base.Policy`."""
        if previous is None:
            return dense_plan(layout)
        quiet = server_round - max(previous.since, self.first_round - 1)
        if not self.first_round <= server_round <= self.last_round:
            return previous.plan
        if quiet > self.patience:
            return previous.plan
        left = split_by_group(layout, previous.plan.alive)
        apart = distance_to_mean(unit_sums(layout, weights, previous.plan), left)
        if self.threshold is None:
            near = {name: z <= self.k for name, z in apart.items()}
            scores = {name: -z for name, z in apart.items()}
            one = dict.fromkeys(near, 1)
            return Plan(layout, keep_from_bool(keep_least(near, scores, one)))
        if previous.plan.alive.all():
            return unit_plan(layout, {n: -z for n, z in apart.items()}, self.threshold)
        return previous.plan


def unit_sums(
    layout: Layout, weights: Arrays, plan: Plan
) -> dict[str, NDArray[np.float64]]:
    """Sum ``|w|`` over a unit's kernels, as far as the plan keeps them.

    Parameters
    ----------
    layout : Layout
    weights : mapping of str to ndarray
        Dense arrays.
    plan : Plan

    Returns
    -------
    dict of str to ndarray
        Group name to ``(group.size,)`` float64; 0 for units that went.
    """
    sizes = {
        t.name: np.abs(weights[t.name]) * plan.dense_mask(t.name)
        for t in weight_tensors(layout)
    }
    return split_by_group(layout, sum_by_unit(layout, sizes))


def distance_to_mean(
    sums: Mapping[str, NDArray[np.float64]], left: Mapping[str, NDArray[np.bool_]]
) -> dict[str, NDArray[np.float64]]:
    """Measure ``|s - mean| / sd`` a group, among the units that are left.

    Parameters
    ----------
    sums : mapping of str to ndarray
        Group name to ``(group.size,)``.
    left : mapping of str to ndarray
        Same shapes, bool.

    Returns
    -------
    dict of str to ndarray
        Same shapes; infinity for units that are not left, 0/0 is 0.

    Examples
    --------
    >>> s = {"conv": np.array([1.0, 3.0, 8.0])}
    >>> distance_to_mean(s, {"conv": np.array([True, True, False])})
    {'conv': array([ 1.,  1., inf])}
    """
    apart = {}
    for name, scores in sums.items():
        among = scores[left[name]]
        away = np.abs(scores - among.mean())
        spread = float(among.std())
        z = away / spread if spread > 0 else np.zeros_like(away)
        apart[name] = np.where(left[name], z, np.inf)
    return apart
