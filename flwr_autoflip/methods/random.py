"""Random units, without exploration: what any score has to beat."""

from dataclasses import dataclass

import numpy as np

from ..errors import AutoFlipError
from ..graph.layout import Arrays, Layout
from .base import Scores, State
from .rescale import rescale_fan_in
from .threshold import Cumulative
from .units import UnitMethod


@dataclass(frozen=True, kw_only=True)
class Random(UnitMethod[State]):
    """Keep units drawn at random, once for the whole run.

    Parameters
    ----------
    seed : int (default: 0)
    macs, threshold, round_to
        How many; see :class:`.UnitMethod`.
    rescale : bool (default: True)
        Make up for lost inputs; see :func:`.rescale_fan_in`.
    """

    seed: int = 0
    rescale: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_random(self.target)

    def begin(self, layout: Layout, weights: Arrays) -> tuple[State, Arrays]:
        """Draw the run's plan; see :meth:`.Method.begin`."""
        scores = draw(layout, self.seed)
        plan = self.choose(layout, scores)
        after = rescale_fan_in(weights, plan) if self.rescale else weights
        return State(plan, scores), after


def draw(layout: Layout, *seed: int) -> Scores:
    """Draw a score in [0, 1) for each unit."""
    generator = np.random.default_rng(seed)
    return {group.name: generator.random(group.size) for group in layout.groups}


def check_random(target: object) -> None:
    """Raise ``AutoFlipError`` if a target is no number of units, but needs scores."""
    if isinstance(target, Cumulative):
        raise AutoFlipError(
            f"random scores have no meaning to accumulate, so {target} cannot choose "
            "units; give macs=0.25, threshold='2x' or units a group."
        )
