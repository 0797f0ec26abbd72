"""Everybody stays: the inner strategy as it is, on our wire and in our ledger."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..graph.layout import Arrays, Layout
from ..graph.plan import Plan, dense_plan
from .guidance import Report
from .policy import Policy, Previous


@dataclass(frozen=True)
class Dense(Policy):
    """Keep every unit and weight."""

    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
        previous: Previous | None = None,
    ) -> Plan:
        """Make the plan that prunes nothing; see :class:`.base.Policy`."""
        return dense_plan(layout)
