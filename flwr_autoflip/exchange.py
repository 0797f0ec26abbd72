"""One phase with its nodes: who is sent what, which replies count, what it cost."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from logging import INFO, WARNING, getLogger
from typing import Any, TypeVar

from flwr.app import Message
from torch import nn

from . import wire
from .core.codec import encode_plan, plan_digest
from .core.cost import Cost, measure_cost
from .core.errors import WireError
from .core.plan import Plan
from .core.shrink import shrink
from .ledger import Ledger, NodeRow, Status

LOGGER = getLogger("flwr")
T = TypeVar("T")


@dataclass
class CostOf:
    """Costs of the dense model and of plans' models; each is built once."""

    model: nn.Module
    example_input: Any
    known: dict[bytes, Cost] = field(default_factory=dict)

    def dense(self) -> Cost:
        """Cost of the whole model."""
        return self._measure(b"", self.model)

    def plan(self, plan: Plan) -> Cost:
        """Cost of a plan's model; single zeros in it count, since they are computed."""
        digest = plan_digest(encode_plan(plan.without_mask()))
        if digest not in self.known:
            self._measure(digest, shrink(self.model, plan.without_mask()))
        return self.known[digest]

    def _measure(self, key: bytes, model: nn.Module) -> Cost:
        if key not in self.known:
            self.known[key] = measure_cost(model, self.example_input)
        return self.known[key]

    def check(self, plan: Plan, parameters: int) -> None:
        """Raise ``WireError`` unless a node built the plan's model or the dense one."""
        small, dense = self.plan(plan).parameters, self.dense().parameters
        if parameters not in (small, dense):
            raise WireError(
                f"the node trained a model of {parameters} parameters; its plan's has "
                f"{small}, the dense one {dense}."
            )


@dataclass(frozen=True)
class Sent:
    """A request that is out."""

    message: Message
    orders: wire.Orders
    held: wire.Held
    row: dict[str, Any]


@dataclass
class Exchange:
    """Send requests, match and check replies, write the ledger.

    Parameters
    ----------
    ledger : Ledger
    cost_of : CostOf
    api : {"message", "numpy"}
    weight_key : str
        The inner strategy's ``weighted_by_key``.
    """

    ledger: Ledger
    cost_of: CostOf
    api: wire.ClientApi
    weight_key: str
    held: dict[int, wire.Held] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)

    def requests(
        self, server_round: int, templates: Sequence[Message], orders: wire.Orders
    ) -> list[Message]:
        """Turn the inner strategy's messages into ours.

        Parameters
        ----------
        server_round : int
        templates : sequence of Message
            One a node, with the dense model; only their keys and config are used.
        orders : Orders

        Returns
        -------
        list of Message
            New messages; the templates stay as they are.
        """
        self.sent = []
        built: dict[tuple[int, wire.Held], tuple[Any, wire.Held, int, int]] = {}
        for template in templates:
            node = template.metadata.dst_node_id
            before = self.held.get(node, wire.Held())
            key = (id(template.content), before)
            if key not in built:
                content, after, plan_bytes = wire.request_content(
                    orders, template.content, before, self.api
                )
                size = wire.count_bytes(content)
                built[key] = (content, after, plan_bytes, size)
            content, after, plan_bytes, size = built[key]
            message = Message(
                content,
                dst_node_id=node,
                message_type=wire.message_type(orders.phase),
                group_id=template.metadata.group_id,
            )
            row = {"round": server_round, "phase": orders.phase, "node": node}
            row |= {"bytes_down": size, "plan_bytes": plan_bytes}
            self.sent.append(Sent(message, orders, after, row))
        return [sent.message for sent in self.sent]

    def replies(
        self, replies: Iterable[Message], read: Callable[[wire.Reply], T]
    ) -> list[tuple[Message, wire.Reply, T]]:
        """Keep the replies that pass every check; count, log and book the rest.

        Parameters
        ----------
        replies : iterable of Message
            In any order, with errors, strangers and repetitions.
        read : callable
            Makes of a checked reply what the phase needs; may raise ``WireError``.

        Returns
        -------
        list of (Message, Reply, what ``read`` made)
        """
        waiting = {sent.message.metadata.message_id: sent for sent in self.sent}
        valid: list[tuple[Sent, Message, wire.Reply, T]] = []
        for message in replies:
            sent = waiting.pop(message.metadata.reply_to_message_id, None)
            if sent is None:
                node = message.metadata.src_node_id
                LOGGER.warning("\t> reply of node %s answers no open request", node)
                continue
            if message.has_error():
                self._lost(sent, "failed", str(message.error.reason), message)
                continue
            try:
                reply = wire.read_reply(message, sent.orders, self.api, self.weight_key)
                self.cost_of.check(
                    sent.orders.plan, reply.receipt.get(wire.KEY_PARAMETERS, 0)
                )
                made = read(reply)
            except WireError as error:
                self._lost(sent, "refused", str(error), message)
                continue
            valid.append((sent, message, reply, made))
        for sent in waiting.values():
            self._lost(sent, "missing", "no reply before the timeout")
        self.sent = []
        return self._alike(valid)

    def _alike(
        self, valid: list[tuple[Sent, Message, wire.Reply, T]]
    ) -> list[tuple[Message, wire.Reply, T]]:
        """Drop replies whose metrics differ from the others': averaging would raise."""
        shapes = [_metric_shape(reply) for _, _, reply, _ in valid]
        common = Counter(shapes).most_common(1)[0][0] if shapes else frozenset()
        kept = []
        for (sent, message, reply, made), shape in zip(valid, shapes, strict=True):
            if shape != common:
                names, others = sorted(dict(shape)), sorted(dict(common))
                reason = f"its metrics are {names}, the other nodes' {others}."
                self._lost(sent, "refused", reason, message)
                continue
            self.held[sent.row["node"]] = sent.held
            self._book(sent, "ok", "", message, reply.receipt)
            kept.append((message, reply, made))
        return kept

    def _lost(
        self, sent: Sent, status: Status, reason: str, message: Message | None = None
    ) -> None:
        node = sent.row["node"]
        LOGGER.log(WARNING, "\t> %s reply of node %s: %s", status, node, reason.strip())
        self.held.pop(node, None)  # it may have restarted: send everything next time
        receipt: dict[str, Any] = {}
        if message is not None and message.has_content():
            receipt = wire.peek_receipt(message.content)
        self._book(sent, status, reason, message, receipt)

    def _book(
        self,
        sent: Sent,
        status: Status,
        reason: str,
        message: Message | None,
        receipt: dict[str, Any],
    ) -> None:
        answered = message is not None and message.has_content()
        cost = self.cost_of.plan(sent.orders.plan)
        if receipt.get(wire.KEY_PARAMETERS) == self.cost_of.dense().parameters:
            cost = self.cost_of.dense()
        self.ledger.add(
            NodeRow(
                **sent.row,
                status=status,
                reason=reason.strip(),
                bytes_up=wire.count_bytes(message.content) if answered else 0,  # type: ignore[union-attr]
                parameters=cost.parameters,
                macs_per_example=cost.macs,
                examples=receipt.get(wire.KEY_EXAMPLES, 0),
                eval_examples=receipt.get(wire.KEY_EVAL_EXAMPLES, 0),
                seconds=receipt.get(wire.KEY_SECONDS, 0.0),
            )
        )


def _metric_shape(reply: wire.Reply) -> frozenset[tuple[str, int]]:
    return frozenset(
        (name, len(value) if isinstance(value, list) else 0)
        for name, value in reply.metrics.items()
    )


def log_round(ledger: Ledger, server_round: int, plan: Plan) -> None:
    """Log a round's line: what stayed and what has travelled so far."""
    rows = [row for row in ledger.rows if row["phase"] != "server"]
    moved = sum(row["bytes_down"] + row["bytes_up"] for row in rows)
    LOGGER.log(
        INFO,
        "\t└──> AutoFlip: round %s, %.0f %% of parameters, %.2f MB so far",
        server_round,
        100 * plan.num_parameters / plan.layout.num_parameters,
        moved / 1e6,
    )
