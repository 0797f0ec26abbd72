"""The steps of a round: each takes the run's state and gives the next one."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from logging import INFO, getLogger
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from ... import wire
from ...errors import AutoFlipError
from ...graph.layout import Arrays
from ...graph.plan import Plan
from ...ledger.ledger import Ledger
from ...methods.base import Method, Order, Result, Round, ValueDtype
from ...wire.encoding import Encoding
from ...wire.keys import Phase
from ..hosts import Rounds, update_inplace, weight_key, with_config
from ..progress import Progress
from ..state import RunState
from .aggregate import Aggregated, aggregate
from .budgets import ask_budgets, cut_instructions
from .exchange import Answer, Exchange
from .explore import measure
from .outliers import measuring, put_back_buffers, refuse_outliers
from .sampling import addressed, configs_of, replace_weak, templates_of

LOGGER = getLogger("flwr")
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
EPOCHS_KEY = "local-epochs"
_NOTHING: Aggregated = None, None
_MOST_ORDERS = 10
"""Orders of one round that only measure; a method that goes on asking has a bug."""


@dataclass(frozen=True)
class Steps:
    """What a run's rounds are made of; nothing in it is the run's state.

    ``inner`` samples nodes and aggregates, ``dtype`` is that of values where an order
    does not say another, ``reports`` the folder for what explorers report.
    """

    inner: Strategy
    method: Method[Any]
    dtype: ValueDtype
    asks_budgets: bool
    exchange: Exchange
    reports: Path | None

    @property
    def ledger(self) -> Ledger:
        """The run's."""
        return self.exchange.ledger

    @cached_property
    def rounds(self) -> Rounds:
        """Turns what the inner strategy raises into a lost round."""
        return Rounds(self.ledger)

    @cached_property
    def progress(self) -> Progress:
        """Says how far the run is."""
        return Progress(self.ledger, self.exchange.cost_of)

    def configure_train(
        self,
        state: RunState,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> tuple[RunState, Order | None, list[Message]]:
        """Sample nodes, and send each what the method's order says and it can carry.

        Orders that only measure are carried out before that; see :class:`.Order`.
        """
        state = replace(state, arrays=arrays, train_config=config)
        sampling = server_round, arrays, config, grid
        sampled = templates_of(state.sampled, self.inner) or self.rounds.choose(
            self.inner, "train", *sampling
        )
        if not sampled:
            return state, None, []
        nodes = [template.metadata.dst_node_id for template in sampled]
        for _ in range(_MOST_ORDERS):
            order = self.method.order(state.method, server_round, nodes)
            templates, state = self._address(order, sampled, state, server_round, grid)
            if order.payload in ("values", "gradients") and templates:
                break
            state = self._explore(state, order, templates, server_round, grid)
            state = replace(state, sampled=configs_of(sampled))
        else:
            raise AutoFlipError(
                f"{type(self.method).__name__} gave {_MOST_ORDERS} orders in round "
                f"{server_round} that train nothing; its learn() has to end that."
            )
        if order.weights is not None:
            update_inplace(state.arrays, dict(order.weights))
        self._note_plan(state, server_round, order.plan)
        instructions = self._instructions("train", state, order)
        weights = wire.from_arrayrecord(state.arrays)
        work = grid, templates, instructions, weights
        state, messages = self._share_out(state, server_round, *work)
        return state, order, messages

    def _address(
        self,
        order: Order,
        sampled: list[Message],
        state: RunState,
        server_round: int,
        grid: Grid,
    ) -> tuple[list[Message], RunState]:
        """Give one message a node that an order is for."""

        def to(nodes: Iterable[int]) -> list[Message]:
            return [addressed(sampled[0], node) for node in nodes]

        match order.who:
            case "round":
                templates = sampled
            case "all":
                templates = to(sorted(grid.get_node_ids()))
            case int(count):
                templates = sampled[:count]
            case nodes:
                templates = to(nodes)
        if order.whole and self.asks_budgets:
            anybody = isinstance(order.who, str | int)
            asked = to(sorted(grid.get_node_ids())) if anybody else templates
            state = self._ask(state, server_round, grid, asked)
            templates = replace_weak(templates, asked, state.budgets)
        if order.epochs is not None:
            templates = with_config(templates, {EPOCHS_KEY: order.epochs})
        return templates, state

    def _instructions(
        self, phase: Phase, state: RunState, order: Order
    ) -> wire.Instructions:
        return wire.Instructions.of(
            phase,
            order.plan,
            wire.from_arrayrecord(state.arrays),
            Encoding(order.dtype or self.dtype),
            regrow=order.regrow and phase == "train",
            payload=order.payload,
        )

    def _share_out(
        self,
        state: RunState,
        server_round: int,
        grid: Grid,
        templates: Sequence[Message],
        instructions: wire.Instructions,
        weights: Arrays,
    ) -> tuple[RunState, list[Message]]:
        """Make each node's request: what it can carry of the plan."""
        nodes = [template.metadata.dst_node_id for template in templates]
        own = dict.fromkeys(nodes, instructions)
        if self.asks_budgets:
            state = self._ask(state, server_round, grid, templates)
            scores = self.method.importance(state.method, weights)
            ratio = self.exchange.cost_of.ratio
            how = state.budgets, scores, ratio, self.method.round_to
            own = cut_instructions(instructions, weights, nodes, *how)
        work = [(t, own[n]) for t, n in zip(templates, nodes, strict=True) if n in own]
        return state, self.exchange.requests(server_round, work)

    def _ask(
        self,
        state: RunState,
        server_round: int,
        grid: Grid,
        templates: Sequence[Message],
    ) -> RunState:
        """Ask nodes for their budget that are new, or failed since they were asked."""
        lost = self.exchange.lost
        known = {n: told for n, told in state.budgets.items() if n not in lost}
        new = [t for t in templates if t.metadata.dst_node_id not in known]
        layout = state.method.plan.layout
        told = ask_budgets(self.exchange, layout, server_round, grid, new)
        return replace(state, budgets={**known, **told})

    def _explore(
        self,
        state: RunState,
        order: Order,
        templates: list[Message],
        server_round: int,
        grid: Grid,
    ) -> RunState:
        """Carry out an order that trains nothing, and let the method learn from it."""
        weights = wire.from_arrayrecord(state.arrays)
        results: list[Result] = []
        if templates:
            LOGGER.log(INFO, "[EXPLORATION on %s nodes]", len(templates))
            instructions = self._instructions("explore", state, order)
            work = [(template, instructions) for template in templates]
            messages = self.exchange.requests(server_round, work)
            replies = grid.send_and_receive(messages, timeout=self.exchange.timeout)
            results = measure(self.exchange, replies, weights, self.reports)
        try:
            state = self._learn(state, server_round, order, results)
        except AutoFlipError as error:
            if results or not templates:
                raise
            reasons = self.ledger.reasons("budget", "explore")
            way_out = any("broadcast" in reason for reason in reasons)
            raise AutoFlipError(
                f"{error} Nodes said: {'; '.join(reasons[:3])}"
                f"{f' {wire.hints.MOD_ORDER}' if way_out else ''}"
            ) from error
        self._note_plan(state, server_round, state.method.plan, log=True)
        return state

    def _learn(
        self,
        state: RunState,
        server_round: int,
        order: Order,
        results: list[Result],
    ) -> RunState:
        weights: Arrays = wire.from_arrayrecord(state.arrays)
        done = Round(server_round, order, results, weights)
        method, then = self.method.learn(state.method, done)
        if then is not weights:
            update_inplace(state.arrays, dict(then))
        return replace(state, method=method)

    def _note_plan(
        self, state: RunState, server_round: int, plan: Plan, log: bool = False
    ) -> None:
        weights = wire.from_arrayrecord(state.arrays)
        scores = partial(self.method.importance, state.method, weights)
        self.progress.plan_made(server_round, plan, scores, log=log)

    def aggregate_train(
        self,
        state: RunState,
        order: Order | None,
        server_round: int,
        replies: Iterable[Message],
    ) -> tuple[RunState, Aggregated]:
        """Expand valid replies, let the inner strategy average, the method learn."""
        state = replace(state, trained=server_round, sampled={})
        answers = put_back_buffers(
            self.exchange.replies(replies, measuring(self.inner), refuse_outliers)
        )
        if not answers or order is None:
            LOGGER.warning("\t> no valid reply: the global model stays as it was")
            return state, _NOTHING
        learns = type(self.method).learn is not Method.learn
        results = [_result(answer) for answer in answers] if learns else []
        weights = wire.from_arrayrecord(state.arrays)
        zero = order.untrained == "zero"
        work = partial(aggregate, self.inner, server_round, answers, weights, zero)
        arrays, metrics = self.rounds.attempt(
            "aggregate_train", server_round, _NOTHING, work
        )
        if metrics is not None:
            state = replace(state, train={**state.train, server_round: metrics})
        if arrays is None:
            return state, (None, metrics)
        state = replace(state, arrays=arrays)
        before = state.method
        if learns:
            state = self._learn(state, server_round, order, results)
        if (now := state.method) is not before:
            anew = now.plan is not before.plan
            self._note_plan(state, server_round + 1, now.plan, log=anew)
        return state, (arrays, metrics)

    def configure_evaluate(
        self,
        state: RunState,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> tuple[RunState, list[Message]]:
        """Send the deployable model, or what fits, to the sampled nodes."""
        state = replace(state, evaluate_config=config)
        sampling = server_round, arrays, config, grid
        templates = self.rounds.choose(self.inner, "evaluate", *sampling)
        if not templates:
            return state, []
        weights = wire.from_arrayrecord(arrays)
        instructions = wire.Instructions.of(
            "evaluate", state.method.plan, weights, Encoding(self.dtype)
        )
        work = grid, templates, instructions, weights
        return self._share_out(state, server_round, *work)

    def evaluate(
        self,
        state: RunState,
        server_round: int,
        arrays: ArrayRecord,
        evaluate_fn: EvaluateFn,
    ) -> MetricRecord | None:
        """Let the app evaluate the deployable model; its arrays are dense, masked."""
        plan = state.method.plan
        masked = plan.apply(wire.from_arrayrecord(arrays))
        metrics = dict(evaluate_fn(server_round, wire.to_arrayrecord(masked)) or {})
        if self.method.evaluates_dense:
            dense = dict(evaluate_fn(server_round, arrays) or {})
            metrics |= {f"dense-{key}": value for key, value in dense.items()}
        shape = self.exchange.cost_of.shape(plan)
        self.ledger.add_server(server_round, metrics, shape)
        return MetricRecord(metrics) if metrics else None

    def aggregate_evaluate(
        self, state: RunState, server_round: int, replies: Iterable[Message]
    ) -> tuple[RunState, MetricRecord | None]:
        """Let the inner strategy average the valid replies' metrics."""
        answers = self.exchange.replies(replies, lambda reply, instructions: None)
        key, metrics = weight_key(self.inner), None
        for answer in answers:
            wire.inner_reply(answer.message, None, answer.reply, key)
        if accepted := [answer.message for answer in answers]:
            work = partial(self.inner.aggregate_evaluate, server_round, accepted)
            metrics = self.rounds.attempt(
                "aggregate_evaluate", server_round, None, work
            )
        if metrics is not None:
            state = replace(state, evaluate={**state.evaluate, server_round: metrics})
        return state, metrics


def _result(answer: Answer[Any]) -> Result:
    reply = answer.reply
    report = wire.report_of(reply, answer.instructions)
    node = answer.message.metadata.src_node_id
    return Result(node, reply.num_examples, report)
