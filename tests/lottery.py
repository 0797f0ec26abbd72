"""A method from outside the package: explores, asks for gradients, starts again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flwr_autoflip.graph.layout import Arrays, Layout
from flwr_autoflip.graph.plan import dense_plan
from flwr_autoflip.methods import Method, Order, Round, State
from flwr_autoflip.methods.guidance import unit_scores
from flwr_autoflip.methods.units import unit_plan


@dataclass(frozen=True, kw_only=True)
class LotteryState(State):
    """What a lottery knows: whether it explored, and where it starts again."""

    explored: bool = False
    initial: Arrays


@dataclass(frozen=True)
class Lottery(Method[LotteryState]):
    """Keep what moved in an exploration; after gradients, drop one more and restart."""

    ticket_round: int = 2

    def begin(self, layout: Layout, weights: Arrays) -> tuple[LotteryState, Arrays]:
        return LotteryState(dense_plan(layout), initial=weights), weights

    def order(
        self, state: LotteryState, server_round: int, nodes: Sequence[int]
    ) -> Order:
        if not state.explored:
            return Order(state.plan, who="all", payload="deviations", whole=True)
        asks = server_round == self.ticket_round
        return Order(state.plan, payload="gradients" if asks else "values")

    def learn(self, state: LotteryState, done: Round) -> tuple[LotteryState, Arrays]:
        layout, payload = state.plan.layout, done.order.payload
        if payload == "values":
            return state, done.weights
        shown = [unit_scores(layout, result.report) for result in done.results]
        scores = {name: sum(one[name] for one in shown) for name in shown[0]}
        if payload == "deviations":
            plan = unit_plan(
                layout, scores, {g.name: g.size - 1 for g in layout.groups}
            )
            after = replace(state, plan=plan, scores=scores, explored=True)
            return after, done.weights
        alive = {name: len(kept) - 1 for name, kept in state.plan.keep.items()}
        plan = unit_plan(layout, scores, alive)
        return replace(state, plan=plan, scores=scores), state.initial
