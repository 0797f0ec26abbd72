"""The units with the largest weights, without exploration."""

from dataclasses import dataclass

from ..graph.layout import Arrays, Layout
from .base import State
from .guidance import l1_scores
from .rescale import rescale_fan_in
from .units import UnitMethod


@dataclass(frozen=True, kw_only=True)
class L1(UnitMethod[State]):
    """Keep units by the mean absolute value of their own initial parameters.

    Parameters
    ----------
    macs, threshold, round_to
        How many; see :class:`.UnitMethod`.
    rescale : bool (default: True)
        Make up for lost inputs; see :func:`.rescale_fan_in`.
    """

    rescale: bool = True

    def begin(self, layout: Layout, weights: Arrays) -> tuple[State, Arrays]:
        """Make the run's plan; see :meth:`.Method.begin`."""
        plan = self.choose(layout, l1_scores(layout, weights))
        return State(plan), rescale_fan_in(weights, plan) if self.rescale else weights
