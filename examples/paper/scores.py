"""Scores of units that were tried, all after the same dense round."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flwr_autoflip.methods.policy import unit_plan
from numpy.typing import NDArray

from flwr_autoflip.graph.layout import Arrays, Layout
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.methods import Policy, Previous, RandomUnits
from flwr_autoflip.methods.guidance import Report, unit_scores
from flwr_autoflip.methods.threshold import MacShare

UnitScores = dict[str, NDArray[np.float64]]

SCORES = {
    "chance": "random units",
    "initial": "initial weights",
    "weights": "weights",
    "deviation": "deviation, Eq. 7",
    "movement": "movement of the mean",
    "product": "weight times movement",
    "relative": "movement over weight",
    "agreement": "agreement of explorers",
    "both": "weights times deviation",
}


@dataclass(frozen=True, eq=False)
class Scored(Policy):
    """Explore on one round's nodes, then keep units by one of many scores.

    Parameters
    ----------
    score : str
        One of :data:`SCORES`.
    macs : MacShare
        How much stays.
    initial : mapping of str to ndarray
        Dense weights before exploring.
    seed : int
        For ``"chance"``.
    """

    score: str
    macs: MacShare
    initial: Arrays
    seed: int

    explores = True

    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
        previous: Previous | None = None,
    ) -> Plan:
        """Make the plan; see :class:`flwr_autoflip.methods.Policy`."""
        if self.score == "chance":
            drawn = RandomUnits(self.macs, self.seed)
            return drawn(server_round, layout, weights, reports)
        scores = score_units(self.score, layout, self.initial, weights, reports)
        return unit_plan(layout, scores, self.macs)


def score_units(
    kind: str,
    layout: Layout,
    before: Arrays,
    after: Arrays,
    reports: Sequence[Report],
) -> UnitScores:
    """Score units by what one round of training did.

    Parameters
    ----------
    kind : str
        One of :data:`SCORES` but ``"chance"``.
    layout : Layout
    before, after : mapping of str to ndarray
        Dense weights before the round, and the nodes' mean after it.
    reports : sequence of Report
        Each node's deviations (Eq. 7).

    Returns
    -------
    dict of str to ndarray
        Group name to ``(group.size,)``; they are compared within a group only.
    """
    names = [t.name for t in layout.tensors if t.trainable]
    moved = {name: after[name].astype(np.float64) - before[name] for name in names}

    def by_unit(values: Arrays) -> UnitScores:
        return unit_scores(layout, values)

    def sizes(arrays: Arrays) -> UnitScores:
        return by_unit({name: np.abs(arrays[name]) for name in names})

    def deviations() -> UnitScores:
        return by_unit({n: np.mean([r[n] for r in reports], 0) for n in names})

    match kind:
        case "initial":
            return sizes(before)
        case "weights":
            return sizes(after)
        case "deviation":
            return deviations()
        case "movement":
            return sizes(moved)
        case "product":
            return sizes({name: after[name] * moved[name] for name in names})
        case "relative":
            return _over(sizes(moved), sizes(before))
        case "agreement":
            squares = by_unit({name: moved[name] ** 2 for name in names})
            return _over(squares, deviations())
        case "both":
            found, root = sizes(after), deviations()
            return {name: found[name] * np.sqrt(root[name]) for name in found}
    raise ValueError(f"score: expected one of {', '.join(SCORES)}, got {kind!r}.")


def _over(above: UnitScores, below: UnitScores) -> UnitScores:
    """Divide; 0/0 is 0."""
    return {
        name: np.divide(
            above[name],
            below[name],
            out=np.zeros_like(above[name]),
            where=below[name] > 0,
        )
        for name in above
    }
