"""The steps of a round: each takes the run's state and gives the next one."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from logging import INFO, getLogger
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from ... import wire
from ...errors import AutoFlipError
from ...graph.layout import Arrays
from ...ledger.ledger import Ledger
from ...methods.base import Method, Order, Result, Round, ValueDtype
from ...wire.encoding import Encoding
from ..hosts import Rounds, update_inplace, weight_key, with_config
from ..progress import Progress
from ..state import RunState
from .aggregate import Aggregated, aggregate
from .budgets import Parts, ask_budgets, cut_instructions
from .exchange import Answer, Exchange
from .explore import measure
from .outliers import Measure, put_back_buffers, refuse_outliers
from .sampling import configs_of, replace_weak, templates_of

LOGGER = getLogger("flwr")
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
EPOCHS_KEY = "local-epochs"
_NOTHING: Aggregated = None, None
_MOST_ORDERS = 10
"""Orders of one round that only measure; a method that goes on asking has a bug."""


@dataclass(frozen=True)
class Steps:
    """What a run's rounds are made of; nothing in it is the run's state.

    Parameters
    ----------
    inner : Strategy
        Samples nodes and aggregates.
    method : Method
    dtype : {"float32", "float16", "int8"}
        Of values, where an order does not say another.
    asks_budgets : bool
        Whether nodes are asked what they can carry.
    exchange : Exchange
    rounds : Rounds
        Turns what the inner strategy raises into a lost round.
    progress : Progress
    reports : Path or None
        Folder for what explorers report.
    """

    inner: Strategy
    method: Method[Any]
    dtype: ValueDtype
    asks_budgets: bool
    exchange: Exchange
    rounds: Rounds
    progress: Progress
    reports: Path | None

    @property
    def ledger(self) -> Ledger:
        """The run's."""
        return self.exchange.ledger

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
                return self._send(state, order, templates, server_round, grid)
            state = self._explore(state, order, templates, server_round, grid)
            state = replace(state, sampled=configs_of(sampled))
        raise AutoFlipError(
            f"{type(self.method).__name__} gave {_MOST_ORDERS} orders in round "
            f"{server_round} that train nothing; its learn() has to end that."
        )

    def _address(
        self,
        order: Order,
        sampled: list[Message],
        state: RunState,
        server_round: int,
        grid: Grid,
    ) -> tuple[list[Message], RunState]:
        """Give one message a node that an order is for."""
        content = sampled[0].content
        group = sampled[0].metadata.group_id

        def to(node: int) -> Message:
            return Message(
                content, dst_node_id=node, message_type="train", group_id=group
            )

        match order.who:
            case "round":
                templates = sampled
            case "all":
                templates = [to(node) for node in sorted(grid.get_node_ids())]
            case int(count):
                templates = sampled[:count]
            case nodes:
                templates = [to(node) for node in nodes]
        if order.whole and self.asks_budgets:
            everyone = [to(node) for node in sorted(grid.get_node_ids())]
            asked = everyone if isinstance(order.who, str | int) else templates
            state = self._ask(state, server_round, grid, asked)
            templates = replace_weak(templates, asked, state.budgets)
        if order.epochs is not None:
            extra = {EPOCHS_KEY: order.epochs}
            templates = [with_config(template, extra) for template in templates]
        return templates, state

    def _encoding(self, order: Order) -> Encoding:
        return Encoding(order.dtype or self.dtype)

    def _send(
        self,
        state: RunState,
        order: Order,
        templates: Sequence[Message],
        server_round: int,
        grid: Grid,
    ) -> tuple[RunState, Order, list[Message]]:
        if order.weights is not None:
            update_inplace(state.arrays, dict(order.weights))
        weights = wire.from_arrayrecord(state.arrays)
        self._note_plan(state, server_round, order)
        instructions = wire.Instructions.of(
            "train",
            order.plan,
            weights,
            self._encoding(order),
            regrow=order.regrow,
            payload=order.payload,
        )
        state, messages = self._share_out(
            state, server_round, grid, templates, instructions, weights
        )
        return state, order, messages

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
            share = self.exchange.cost_of.ratio
            multiple = getattr(self.method, "round_to", 1)
            parts = Parts(instructions.plan, scores, share, multiple)
            own = cut_instructions(instructions, weights, nodes, state.budgets, parts)
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
            instructions = wire.Instructions.of(
                "explore",
                order.plan,
                weights,
                self._encoding(order),
                payload=order.payload,
            )
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
        self._note_plan(state, server_round, log=True)
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
        self,
        state: RunState,
        server_round: int,
        order: Order | None = None,
        log: bool = False,
    ) -> None:
        plan = state.method.plan if order is None else order.plan
        weights = wire.from_arrayrecord(state.arrays)
        self.progress.plan_made(
            server_round,
            plan,
            lambda: self.method.importance(state.method, weights),
            log=log,
        )

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
            self.exchange.replies(replies, Measure(self.inner), refuse_outliers)
        )
        if not answers or order is None:
            LOGGER.warning("\t> no valid reply: the global model stays as it was")
            return state, _NOTHING
        learns = type(self.method).learn is not Method.learn
        results = [_result(answer) for answer in answers] if learns else []
        weights = wire.from_arrayrecord(state.arrays)
        zero = order.untrained == "zero"
        work = self.inner, server_round, answers, weights, zero
        arrays, metrics = self.rounds.attempt(
            "aggregate_train", _NOTHING, aggregate, *work
        )
        if metrics is not None:
            state = replace(state, train={**state.train, server_round: metrics})
        if arrays is None:
            return state, (None, metrics)
        self.rounds.note_trained()
        state = replace(state, arrays=arrays)
        before = state.method
        if learns:
            state = self._learn(state, server_round, order, results)
        if state.method is not before:
            self._note_plan(
                state, server_round + 1, log=state.method.plan is not before.plan
            )
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
        return self._share_out(
            state, server_round, grid, templates, instructions, weights
        )

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
        key = weight_key(self.inner)
        for answer in answers:
            wire.inner_reply(answer.message, None, answer.reply, key)
        metrics = None
        if accepted := [answer.message for answer in answers]:
            average = self.inner.aggregate_evaluate
            args = None, average, server_round, accepted
            metrics = self.rounds.attempt("aggregate_evaluate", *args)
        if metrics is not None:
            state = replace(state, evaluate={**state.evaluate, server_round: metrics})
        return state, metrics


def _result(answer: Answer[Any]) -> Result:
    reply = answer.reply
    report = wire.report_of(reply, answer.instructions)
    node = answer.message.metadata.src_node_id
    return Result(node, reply.num_examples, report)
