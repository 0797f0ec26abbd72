"""Plans that grow: a small network first, a larger one around it later."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr_autoflip.methods.policy import OnChange, unit_plan

from flwr_autoflip.graph.layout import Arrays, Layout
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.methods import Policy, Previous
from flwr_autoflip.methods.guidance import Report
from flwr_autoflip.methods.threshold import MacShare


@dataclass(frozen=True)
class Growing(Policy):
    """Keep the units of largest initial weights, more of them in later rounds.

    Parameters
    ----------
    shares : mapping of int to float
        First round of each size -> share of the dense MACs; 1 is among the keys.
    function_preserving : bool (default: True)
        New units change nothing at first; or come in with their initial weights.
    exponent : float (default: infinite)
        Of how layers share the cut; see :class:`.threshold.MacShare`.
    """

    shares: Mapping[int, float]
    function_preserving: bool = True
    exponent: float = np.inf

    renewed = "round"

    @property
    def on_change(self) -> OnChange:
        """What becomes of weights when the plan changes."""
        return "grow" if self.function_preserving else "keep"

    @property
    def rescales(self) -> bool:
        """Whether a first plan's weights may make up for lost inputs."""
        return True

    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
        previous: Previous | None = None,
    ) -> Plan:
        """Grow when it is time; see :class:`flwr_autoflip.methods.Policy`."""
        due = [first for first in self.shares if first <= max(server_round, 1)]
        if previous is not None and server_round not in self.shares:
            return previous.plan
        scores = self.rank_units(server_round, layout, weights, reports)
        if previous is not None:
            for name, kept in previous.plan.keep.items():
                scores[name][kept] = np.inf  # who is there stays
        return unit_plan(layout, scores, MacShare(self.shares[max(due)], self.exponent))
