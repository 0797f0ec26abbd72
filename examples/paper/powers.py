"""Layers cut by a power of their width: tried, and not the default."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flwr_autoflip.methods.policy import unit_plan

from flwr_autoflip.graph.layout import Arrays, Layout
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.methods import Policy, Previous
from flwr_autoflip.methods.guidance import Report


@dataclass(frozen=True)
class Powers(Policy):
    """Keep ``level * size ** exponent`` units a group, those of largest weights.

    Parameters
    ----------
    share : float
        Largest share of the dense MACs.
    exponent : float
        1 keeps the same share of every group, 0 the same number.
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
        """Make the plan; see :class:`flwr_autoflip.methods.Policy`."""
        scores = self.rank_units(server_round, layout, weights, reports)
        sizes = {group.size for group in layout.groups}
        steps = [np.arange(1, n + 1) / n**self.exponent for n in sizes]
        levels = np.unique(np.concatenate(steps))

        def plan(level: float) -> Plan:
            counts = {
                g.name: min(max(1, int(level * g.size**self.exponent + 1e-9)), g.size)
                for g in layout.groups
            }
            return unit_plan(layout, scores, counts)

        most, low, high = self.share * dense_plan(layout).macs, 0, len(levels) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if plan(levels[middle]).macs <= most:
                low = middle
            else:
                high = middle - 1
        return plan(levels[low])
