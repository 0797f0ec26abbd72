"""A round's participants have a say in the plan of everybody: tried."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flwr_autoflip.methods.policy import unit_plan
from numpy.typing import NDArray
from scipy.stats import rankdata

from flwr_autoflip.graph.layout import Arrays, Layout
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.methods import Policy, Previous
from flwr_autoflip.methods.guidance import Report
from flwr_autoflip.methods.threshold import MacShare

from .scores import score_units


@dataclass(frozen=True, eq=False)
class Blended(Policy):
    """Keep units by initial weights, and by the round's participants' deviations.

    Parameters
    ----------
    macs : MacShare
        How much stays.
    blend : float
        Weight of the participants' ranking (Eq. 7) in [0, 1]; the other one, by initial
        weights, is the same in every round and has the rest.
    initial : mapping of str to ndarray
        Dense weights before exploring.
    """

    macs: MacShare
    blend: float
    initial: Arrays

    explores = True

    @property
    def per_round(self) -> bool:
        """Participants decide."""
        return True

    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
        previous: Previous | None = None,
    ) -> Plan:
        """Make the plan; see :class:`flwr_autoflip.methods.Policy`."""
        stable, moved = (
            score_units(kind, layout, self.initial, weights, reports)
            for kind in ("initial", "deviation")
        )
        scores = {
            name: (1 - self.blend) * _ranks(stable[name]) + self.blend * _ranks(found)
            for name, found in moved.items()
        }
        return unit_plan(layout, scores, self.macs)


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give ranks over their number, so that two kinds of scores are comparable."""
    return rankdata(scores) / scores.size
