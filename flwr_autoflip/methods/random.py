"""Random units, without exploration: what any guidance has to beat."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..graph.layout import Arrays, Layout
from ..graph.plan import Plan
from .guidance import Report
from .policy import Policy, Previous, UnitCounts, unit_plan
from .threshold import Threshold


@dataclass(frozen=True)
class RandomUnits(Policy):
    """Keep units drawn at random, once for the whole run.

    Parameters
    ----------
    threshold : Threshold or mapping of str to int
        How many: a target such as ``Compression`` or ``MacShare``, or a count a group.
    seed : int (default: 0)
    round_to : int (default: 1)
        Keep a multiple of this many units a group.
    """

    threshold: Threshold | UnitCounts
    seed: int = 0
    round_to: int = 1

    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
        previous: Previous | None = None,
    ) -> Plan:
        """Draw the plan; see :class:`.base.Policy`."""
        scores = self.rank_units(server_round, layout, weights, reports)
        return unit_plan(layout, scores, self.threshold, self.round_to)

    def rank_units(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
    ) -> dict[str, NDArray[np.float64]]:
        """Draw scores, the same every time; see :class:`.base.Policy`."""
        generator = np.random.default_rng(self.seed)
        return {group.name: generator.random(group.size) for group in layout.groups}
