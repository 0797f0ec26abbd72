"""Nothing is pruned: what only compresses values or leaves weak nodes less."""

from dataclasses import dataclass

from ..graph.layout import Arrays, Layout
from ..graph.plan import dense_plan
from .base import Method, State


@dataclass(frozen=True)
class Dense(Method[State]):
    """Keep everything."""

    def begin(self, layout: Layout, weights: Arrays) -> tuple[State, Arrays]:
        """Make the plan that prunes nothing; see :meth:`.Method.begin`."""
        return State(dense_plan(layout)), weights
