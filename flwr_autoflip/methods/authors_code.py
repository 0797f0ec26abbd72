"""AutoFLIP as its authors' public code has it, where that differs from the paper."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import AutoFlipError
from ..graph.layout import Arrays, Layout
from ..graph.plan import Plan, dense_plan
from .base import Explored, Method, Order, Round
from .guidance import layer_guidance, unit_scores
from .paper import check_epochs
from .threshold import Quantile, select


@dataclass(frozen=True)
class AuthorsCode(Method[Explored]):
    """Every node explores in round 1; then one mask of single weights for the run.

    Guidance is the nodes' mean, min-max a tensor; what does not lie strictly above its
    quantile over the model is masked, and no unit is pruned. Training goes on from the
    explored model, masked weights may come back, values travel in 32 bits. Where we
    differ: explorers work in parallel and are averaged, and the mask is applied before
    each round's training.

    Parameters
    ----------
    ratio : float (default: 0.3)
        Of the model's parameters that are masked.
    epochs : int (default: 150)
        Of exploring, sent as ``config["local-epochs"]``.

    Raises
    ------
    AutoFlipError
        If either is out of range.
    """

    ratio: float = 0.3
    epochs: int = 150

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise AutoFlipError(f"ratio must lie in [0, 1), got {self.ratio!r}.")
        check_epochs(self.epochs)

    def begin(self, layout: Layout, weights: Arrays) -> tuple[Explored, Arrays]:
        """Begin with the dense model; see :meth:`.Method.begin`."""
        return Explored(dense_plan(layout)), weights

    def order(self, state: Explored, server_round: int, nodes: Sequence[int]) -> Order:
        """Explore once, then train under the mask; see :meth:`.Method.order`."""
        if state.explored:
            return Order(state.plan, dtype="float32", regrow=True)
        return Order(
            state.plan, who="all", epochs=self.epochs, dtype="float32", whole=True
        )

    def learn(self, state: Explored, done: Round) -> tuple[Explored, Arrays]:
        """Make the mask of what explorers showed; see :meth:`.Method.learn`.

        Raises
        ------
        AutoFlipError
            If no node carries the dense model.
        """
        if state.explored:
            return state, done.weights
        if not done.results:
            raise AutoFlipError(
                "no node can carry the dense model, which the authors' code explores; "
                "method='autoflip' and 'l1' can do without."
            )
        layout = state.plan.layout
        guidance = layer_guidance([result.report for result in done.results])
        chosen = select(guidance, Quantile(self.ratio, "global"))
        mask = {name: np.asarray(kept) for name, kept in chosen.items()}
        plan = Plan(layout, state.plan.keep, mask)
        scores = unit_scores(layout, guidance)
        return Explored(plan, scores, explored=True), done.weights
