"""Layers cut by what that saves, nearer to an even share: tried for the default."""

from collections.abc import Sequence
from dataclasses import dataclass

from flwr_autoflip.core.allocate import allocate
from flwr_autoflip.core.guidance import Report
from flwr_autoflip.core.layout import Arrays, Layout
from flwr_autoflip.core.plan import Plan
from flwr_autoflip.policies import Policy, Previous
from flwr_autoflip.policies.base import unit_plan


@dataclass(frozen=True)
class Tempered(Policy):
    """Keep the units of largest weights, as many as ``allocate`` says.

    Parameters
    ----------
    share : float
        Largest share of the dense MACs.
    exponent : float
        1 is the default's "balanced"; the larger, the more even.
    """

    share: float
    exponent: float

    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
        previous: Previous | None = None,
    ) -> Plan:
        """Make the plan; see :class:`flwr_autoflip.policies.Policy`."""
        scores = self.rank_units(server_round, layout, weights, reports)
        return unit_plan(layout, scores, allocate(layout, self.share, self.exponent))
