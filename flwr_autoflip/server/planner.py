"""Which plan holds: in a round, and for what is evaluated and deployed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.codec import decode_plan, encode_plan
from ..graph.layout import Arrays, Layout
from ..graph.plan import Plan, dense_plan
from ..methods import Policy, Previous
from ..methods.grow import grow
from ..methods.guidance import Report
from ..methods.rescale import rescale_fan_in
from .store import ReportStore

LOGGER = getLogger("flwr")


@dataclass
class Planner:
    """Call the policy when a plan is due, and remember what it said.

    Parameters
    ----------
    policy : Policy
    layout : Layout
    explored : ReportStore
        Node id to deviations; grows as nodes explore.
    probed : dict of str to ndarray
        Squared gradients of the last round, float64, summed over its nodes; empty if
        it did not probe.
    initial : mapping of str to ndarray
        What a policy starts from that starts again when a plan changes; else empty.
    """

    policy: Policy
    layout: Layout
    explored: ReportStore
    probed: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    initial: Arrays = field(default_factory=dict)
    _run_plan: Plan | None = None
    _previous: Previous | None = None
    _server_round: int = 0

    def start(self, weights: Arrays) -> Plan:
        """Make the plan of all explorers, before round 1.

        Parameters
        ----------
        weights : mapping of str to ndarray
            Global dense arrays that the rounds start from.

        Returns
        -------
        Plan
        """
        reports = self.explored.everyone()
        self._run_plan = self._decide(0, weights, reports)
        self._previous = Previous(self._run_plan, 0)
        self._server_round, self.probed = 0, {}
        return self._run_plan

    @property
    def held(self) -> Plan:
        """The plan that holds; before the first one, the dense model's."""
        held = self._previous
        return dense_plan(self.layout) if held is None else held.plan

    def add_probe(self, squares: Report, num_examples: float) -> None:
        """Take a node's squared gradients in, weighed as its values are."""
        for name, values in squares.items():
            weighed = num_examples * values.astype(np.float64)
            self.probed[name] = self.probed.get(name, 0.0) + weighed

    def renew(
        self, server_round: int, weights: Arrays, rescale: bool
    ) -> dict[str, NDArray[Any]] | None:
        """Make a round's plan from the weights, the probe and the plan that held.

        Parameters
        ----------
        server_round : int
        weights : mapping of str to ndarray
            Global dense arrays at the start of the round.
        rescale : bool
            Whether weights that start again, or come in, make up for lost inputs.

        Returns
        -------
        dict of str to ndarray or None
            What the weights become, as the policy's ``on_change`` says; None where
            they stay, or the plan that held still does.
        """
        before, reports = self._previous, [self.probed] if self.probed else []
        plan = self.policy(server_round, self.layout, weights, reports, before)
        self._server_round, self.probed = server_round, {}
        if before is not None and encode_plan(plan) == encode_plan(before.plan):
            return None
        self._previous = Previous(plan, server_round)
        match self.policy.on_change:
            case "grow" if before is not None:
                return grow(weights, before.plan, plan, rescale)
            case "restart" if rescale:
                return rescale_fan_in(self.initial, plan)
            case "restart":
                return dict(self.initial)
        return None

    def of_round(
        self, server_round: int, weights: Arrays, nodes: Iterable[int]
    ) -> Plan:
        """Give the plan that these nodes train in this round."""
        if self.policy.renewed != "never" and self._previous is not None:
            return self._previous.plan
        if not self.policy.per_round:
            return self.deployable(weights)
        nodes = list(nodes)
        reports: Sequence[Report] = self.explored.of(nodes)
        if len(reports) < min(2, len(nodes)):  # the others could not explore
            reports = self.explored.everyone()
        return self._decide(server_round, weights, reports)

    def _decide(
        self, server_round: int, weights: Arrays, reports: Sequence[Report]
    ) -> Plan:
        if self.policy.explores and not reports:  # no file is whole any more
            LOGGER.warning("\t> no node's guidance is left: the dense model stays")
            return dense_plan(self.layout)
        return self.policy(server_round, self.layout, weights, reports)

    def rank_units(self, weights: Arrays) -> Mapping[str, NDArray[Any]]:
        """Give the policy's scores of units, for plans inside the plan that holds.

        Parameters
        ----------
        weights : mapping of str to ndarray
            Global dense arrays.

        Returns
        -------
        mapping of str to ndarray
            Group name to ``(group.size,)``.
        """
        reports = self.explored.everyone()
        return self.policy.rank_units(self._server_round, self.layout, weights, reports)

    def guidance(self) -> Mapping[str, NDArray[Any]]:
        """Give units' guidance over all who explored so far; empty if nobody did."""
        reports = self.explored.everyone()
        return self.policy.unit_guidance(self.layout, reports) if reports else {}

    def deployable(self, weights: Arrays) -> Plan:
        """Give the plan for evaluation and deployment.

        Parameters
        ----------
        weights : mapping of str to ndarray
            Global dense arrays that are evaluated or deployed.

        Returns
        -------
        Plan
            Of all explorers; with a policy that is ``renewed`` the plan that holds, or
            one made from these weights. See :class:`.Policy`.
        """
        if self.policy.renewed == "weights":
            return self.policy(
                self._server_round, self.layout, weights, [], self._previous
            )
        if self.policy.renewed == "round":
            return self.held
        if self._run_plan is None:
            return self.start(weights)
        return self._run_plan

    # --- Checkpoints ---

    def state(self) -> dict[str, Any]:
        """Give what was decided so far, as plain values; ``initial`` not included."""
        held = self._previous
        return {
            "run_plan": _encode(self._run_plan),
            "previous": None if held is None else (_encode(held.plan), held.since),
            "probed": self.probed,
            "round": self._server_round,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        held = state["previous"]
        self._run_plan = self._decode(state["run_plan"])
        plan = None if held is None else self._decode(held[0])
        self._previous = None if plan is None else Previous(plan, held[1])
        self.probed, self._server_round = state["probed"], state["round"]

    def _decode(self, data: bytes | None) -> Plan | None:
        return None if data is None else decode_plan(data, self.layout)


def _encode(plan: Plan | None) -> bytes | None:
    return None if plan is None else encode_plan(plan)
