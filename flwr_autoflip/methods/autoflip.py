"""AutoFLIP in our form: the first round explores, and one plan comes of it.

From arXiv:2405.10271v3 are deviations (Eq. 7) and that they guide the plan; what
differs is listed in ``docs/method.md``.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Literal

from ..errors import AutoFlipError, AutoFlipWarning
from ..graph.layout import Arrays, Layout
from ..graph.plan import dense_plan, warn_if_nothing_pruned
from .base import Explored, Order, Round
from .guidance import l1_scores, layer_guidance, parse_aggregator, unit_scores
from .rescale import rescale_fan_in
from .units import UnitMethod

LOGGER = getLogger("flwr")


@dataclass(frozen=True, kw_only=True)
class Guided(UnitMethod[Explored]):
    """AutoFLIP: keep units by guidance, how far their parameters moved in round 1.

    Round 1 trains the dense model on that round's nodes, and is averaged like any
    other; its deviations (Eq. 7), min-max a tensor, score the units of the run's plan.

    Parameters
    ----------
    aggregator : str (default: "mean")
        Of deviations over nodes: ``"mean"``, ``"median"`` or ``"trimmed-mean:0.2"``.
        Each node's deviations are brought to mean 1 a tensor first, so that none
        decides by its scale.
    report : {"values", "units"} (default: "values")
        What explorers send: the values that they trained; or only how far each unit
        moved, which a node may add noise to, in a step of its own before round 1's
        training.
    macs, threshold, round_to
        How many units are kept; see :class:`.UnitMethod`.
    rescale : bool (default: True)
        Make up for lost inputs; see :func:`.rescale_fan_in`.

    Raises
    ------
    AutoFlipError
        On any other value.
    """

    aggregator: str = "mean"
    report: Literal["values", "units"] = "values"
    rescale: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_aggregator(self.aggregator)
        if self.report not in ("values", "units"):
            raise AutoFlipError(
                f"report must be 'values' or 'units', got {self.report!r}."
            )

    def begin(self, layout: Layout, weights: Arrays) -> tuple[Explored, Arrays]:
        """Begin with the dense model; see :meth:`.Method.begin`."""
        return Explored(dense_plan(layout)), weights

    def order(self, state: Explored, server_round: int, nodes: Sequence[int]) -> Order:
        """Explore once, then train; see :meth:`.Method.order`."""
        if state.explored:
            return Order(state.plan)
        return Order(state.plan, payload=self.report, whole=True)

    def learn(self, state: Explored, done: Round) -> tuple[Explored, Arrays]:
        """Make the run's plan of what explorers showed; see :meth:`.Method.learn`.

        Without any it rests on the weights, as :class:`.L1`'s does.
        """
        if state.explored:
            return state, done.weights
        layout = state.plan.layout
        reports = [result.report for result in done.results]
        if reports:
            guidance = layer_guidance(reports, self.aggregator, equal_scale=True)
            scores = unit_scores(layout, guidance)
        else:
            scores = l1_scores(layout, done.weights)
            text = "\t> no node explored the dense model: units are chosen by weight"
            LOGGER.warning(text)
        if len(reports) == 1:
            warnings.warn(
                "one explorer only: the plan rests on one node's data. Let more nodes "
                "take part in round 1.",
                AutoFlipWarning,
                stacklevel=2,
            )
        plan = self.choose(layout, scores)
        warn_if_nothing_pruned(plan, "give a smaller macs, or another threshold.")
        after = rescale_fan_in(done.weights, plan) if self.rescale else done.weights
        return Explored(plan, scores, explored=True), after
