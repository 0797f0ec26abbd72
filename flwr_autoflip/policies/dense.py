"""Everybody stays: the inner strategy as it is, on our wire and in our ledger."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.guidance import Report
from ..core.layout import Arrays, Layout
from ..core.plan import Plan, dense_plan


@dataclass(frozen=True)
class Dense:
    """Keep every unit and weight."""

    explores = False
    per_round = False

    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
    ) -> Plan:
        """Make the plan that prunes nothing; see :class:`.base.Policy`."""
        return dense_plan(layout)
