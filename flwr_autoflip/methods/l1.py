"""Units with the largest weights, without exploration."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..graph.layout import Arrays, Layout
from ..graph.plan import Plan
from .guidance import Report
from .policy import Policy, Previous, UnitCounts, unit_plan
from .threshold import Threshold


@dataclass(frozen=True)
class L1Units(Policy):
    """Keep units by the mean absolute value of their own parameters.

    Parameters
    ----------
    threshold : Threshold or mapping of str to int
        How many: a target such as ``Compression`` or ``MacShare``, or a count a group.
    round_to : int (default: 1)
        Keep a multiple of this many units a group.
    """

    threshold: Threshold | UnitCounts
    round_to: int = 1

    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
        previous: Previous | None = None,
    ) -> Plan:
        """Make the plan of the weights at hand; see :class:`.base.Policy`."""
        scores = self.rank_units(server_round, layout, weights, reports)
        return unit_plan(layout, scores, self.threshold, self.round_to)
