"""AutoFLIP to the letter of arXiv:2405.10271v3: Algorithm 1 and Table II."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import AutoFlipError, AutoFlipWarning
from ..graph.layout import Arrays, Layout
from ..graph.plan import Plan, dense_plan, warn_if_nothing_pruned
from .base import Method, Order, Round, Scores, State
from .guidance import Report, client_guidance, split_by_group, sum_by_unit, unit_scores
from .threshold import keep_top


@dataclass(frozen=True)
class PaperState(State):
    """What :class:`Paper` knows; its plan is that of all explorers.

    ``reports`` maps nodes' ids to deviations; in round ``asked`` nodes explored last.
    """

    reports: Mapping[int, Report] = field(default_factory=dict)
    asked: int = 0


@dataclass(frozen=True)
class Paper(Method[PaperState]):
    """Every node explores; each round is masked by its own participants' deviations.

    Nodes that were not there when all explored do so when they are first sampled. What
    they trained is thrown away. A unit is pruned when each of its own parameters is;
    what no node trained becomes 0; values travel in 32 bits.

    Parameters
    ----------
    threshold : float (default: 0.3)
        T_p of Eq. 11: parameters with less guidance are pruned.
    epochs : int (default: 150)
        Of exploring, sent as ``config["local-epochs"]``.

    Raises
    ------
    AutoFlipError
        If either is out of range.
    """

    threshold: float = 0.3
    epochs: int = 150

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise AutoFlipError(
                f"threshold is T_p, in [0, 1), for guidance, got {self.threshold!r}."
            )
        check_epochs(self.epochs)

    def begin(self, layout: Layout, weights: Arrays) -> tuple[PaperState, Arrays]:
        """Begin with the dense model; see :meth:`.Method.begin`."""
        return PaperState(dense_plan(layout)), weights

    def order(
        self, state: PaperState, server_round: int, nodes: Sequence[int]
    ) -> Order:
        """Let new nodes explore, then train under the mask; see :meth:`.Method.order`.

        Where fewer than two of the nodes have explored, all explorers count.
        """
        new = tuple(node for node in nodes if node not in state.reports)
        if state.asked < server_round and (new or not state.reports):
            return Order(
                dense_plan(state.plan.layout),
                who=new if state.reports else "all",
                payload="deviations",
                epochs=self.epochs,
                dtype="float32",
                whole=True,
            )
        known = [state.reports[node] for node in nodes if node in state.reports]
        plan = state.plan
        if 1 < len(known) < len(state.reports):
            plan, _ = self._plan(plan.layout, known)
        return Order(plan, dtype="float32", untrained="zero")

    def learn(self, state: PaperState, done: Round) -> tuple[PaperState, Arrays]:
        """Take in what new nodes reported; see :meth:`.Method.learn`.

        Raises
        ------
        AutoFlipError
            If fewer than two nodes explored so far.
        """
        if done.order.payload != "deviations":
            return state, done.weights
        found = {result.node: result.report for result in done.results}
        reports, plan, scores = {**state.reports, **found}, state.plan, state.scores
        if found:
            plan, scores = self._plan(plan.layout, list(reports.values()))
        elif not reports:
            raise AutoFlipError(
                "no node gave a valid report of its exploration; method='autoflip' and "
                "'l1' can do without."
            )
        return PaperState(plan, scores, reports, done.number), done.weights

    def _plan(self, layout: Layout, reports: Sequence[Report]) -> tuple[Plan, Scores]:
        """Mark parameters by Eq. 11, and prune units that are marked whole."""
        count = len(reports)
        guidance = client_guidance(reports)
        if self.threshold * count <= 1:
            warnings.warn(
                f"T_p = {self.threshold} is at most 1/K = 1/{count}, and guidance is "
                "never below 1/K, so this prunes only what no explorer moved. Let more "
                "nodes take part, or raise the threshold.",
                AutoFlipWarning,
                stacklevel=3,
            )
        mask = {name: np.asarray(g >= self.threshold) for name, g in guidance.items()}
        left = split_by_group(layout, sum_by_unit(layout, mask))
        scores = unit_scores(layout, guidance)
        keep = {
            name: np.flatnonzero(number if number.any() else keep_top(scores[name], 1))
            for name, number in left.items()
        }
        plan = Plan(layout, keep, mask)
        warn_if_nothing_pruned(plan, "raise the threshold.")
        return plan, scores


def check_epochs(epochs: int) -> None:
    """Raise ``AutoFlipError`` unless a number of epochs is one."""
    if not (isinstance(epochs, int) and epochs >= 1):
        raise AutoFlipError(f"epochs must be a number of at least 1, got {epochs!r}.")
