"""One phase with its nodes: who is sent what, which replies count, what it cost."""

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from logging import WARNING, getLogger
from typing import Any, Generic, TypeVar

from flwr.app import Message, RecordDict

from ... import wire
from ...errors import WireError, visible
from ...graph.codec import encode_layout, encode_plan
from ...ledger.cost import Cost, CostOf
from ...ledger.ledger import Ledger
from ...ledger.rows import NodeRow, Status

LOGGER = getLogger("flwr")
T = TypeVar("T")


@dataclass(frozen=True)
class Sent:
    """A request that is out."""

    message: Message
    instructions: wire.Instructions
    row: dict[str, Any]


@dataclass(frozen=True)
class Answer(Generic[T]):
    """A reply that passed every check, and what the phase made of it."""

    message: Message
    reply: wire.Reply
    instructions: wire.Instructions
    made: T


@dataclass
class Exchange:
    """Send requests, match and check replies, write the ledger. One a run.

    ``timeout`` is how many seconds phases of our own, between Flower's, wait; ``run``
    names the run to nodes, which drop what they kept of another one; in ``sent`` are
    requests that wait for replies; nodes whose last reply did not count are ``lost``.
    """

    ledger: Ledger
    cost_of: CostOf
    weight_key: str
    timeout: float | None = 3600.0
    run: bytes = field(default_factory=lambda: secrets.token_bytes(8))
    sent: list[Sent] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)

    def requests(
        self, server_round: int, work: Iterable[tuple[Message, wire.Instructions]]
    ) -> list[Message]:
        """Turn the inner strategy's messages, one a node, into ours.

        Only their keys and config are used. Nodes with the same message content and
        instructions share a content.
        """
        self.sent = []
        built: dict[tuple[int, int], tuple[RecordDict, int]] = {}
        for template, instructions in work:
            key, plan = (id(template.content), id(instructions)), instructions.plan
            if key not in built:
                content = wire.request_content(
                    instructions,
                    template.content,
                    self.run,
                    self.cost_of.answering(plan),
                )
                built[key] = content, wire.count_bytes(content)
            content, size = built[key]
            metadata = template.metadata
            message = Message(
                content,
                dst_node_id=metadata.dst_node_id,
                message_type=wire.keys.message_type(instructions.phase),
                group_id=metadata.group_id,
            )
            row = {
                "round": server_round,
                "phase": instructions.phase,
                "node": metadata.dst_node_id,
                "bytes_down": size,
                "plan_bytes": len(encode_layout(plan.layout)) + len(encode_plan(plan)),
            }
            self.sent.append(Sent(message, instructions, row))
        return [sent.message for sent in self.sent]

    def replies(
        self,
        replies: Iterable[Message],
        read: Callable[[wire.Reply, wire.Instructions], T],
        compare: Callable[[list[T]], Mapping[int, str]] = lambda made: {},
    ) -> list[Answer[T]]:
        """Keep the replies that pass every check; count, log and book the rest.

        They come in any order, with errors, strangers and repetitions, and are given in
        the order of the requests. ``read`` makes of a checked reply what the phase
        needs, or raises ``WireError``; ``compare``, given that of all replies that
        pass, says which are refused beside the others: place to reason.
        """
        waiting = {sent.message.metadata.message_id: sent for sent in self.sent}
        place = {message_id: i for i, message_id in enumerate(waiting)}
        valid: list[tuple[Sent, Answer[T]]] = []
        for message in replies:
            asked, node = message.metadata.reply_to_message_id, None
            if not message.has_error():  # which Flower reports in nodes' place
                node = int(message.metadata.src_node_id)
            sent = waiting.get(asked)
            if sent is None or node not in (None, sent.row["node"]):
                LOGGER.warning("\t> reply of node %s answers no open request", node)
                continue
            del waiting[asked]
            if message.has_error():
                reason = wire.hints.with_way_out(str(message.error.reason))
                self._lost(sent, "failed", reason, message)
                continue
            try:
                instructions = sent.instructions
                reply = wire.read_reply(message, instructions, self.weight_key)
                if instructions.phase != "budget":
                    built = reply.metadata.get(wire.keys.PARAMETERS, 0)
                    self.cost_of.check(instructions.plan, built)
                made = read(reply, instructions)
            except WireError as error:
                self._lost(sent, "refused", str(error), message)
                continue
            valid.append((sent, Answer(message, reply, instructions, made)))
        for sent in waiting.values():
            self._lost(sent, "missing", "no reply before the timeout")
        self.sent = []
        # Sums of floats depend on their order: let it not depend on who was faster.
        valid.sort(key=lambda pair: place[pair[0].message.metadata.message_id])
        refused = compare([answer.made for _, answer in valid])
        for index, reason in refused.items():
            sent, answer = valid[index]
            self._lost(sent, "refused", reason, answer.message)
        return self._accept([v for i, v in enumerate(valid) if i not in refused])

    def _accept(self, valid: list[tuple[Sent, Answer[T]]]) -> list[Answer[T]]:
        """Book replies that count, with the metrics that all of them have."""
        metrics, left_out = wire.common_metrics([a.reply.metrics for _, a in valid])
        if left_out:
            names = visible(", ".join(left_out))
            text = "\t> metrics that not all nodes have alike are left out: %s"
            LOGGER.log(WARNING, text, names)
        accepted = []
        for (sent, answer), common in zip(valid, metrics, strict=True):
            note, node = answer.reply.unusable, sent.row["node"]
            if note:
                note = visible(f"metrics left out: {note}")
                LOGGER.log(WARNING, "\t> reply of node %s: %s", node, note)
            self.lost.discard(node)
            self._book(sent, "ok", note, answer.message, answer.reply.metadata)
            reply = replace(answer.reply, metrics=common)
            accepted.append(replace(answer, reply=reply))
        return accepted

    def _lost(
        self, sent: Sent, status: Status, reason: str, message: Message | None = None
    ) -> None:
        node, reason = sent.row["node"], visible(reason)
        LOGGER.log(WARNING, "\t> %s reply of node %s: %s", status, node, reason)
        self.lost.add(node)  # it may have restarted, with another budget
        metadata: dict[str, Any] = {}
        if message is not None and message.has_content():
            metadata = wire.peek_metadata(message.content)
        self._book(sent, status, reason, message, metadata)

    def _book(
        self,
        sent: Sent,
        status: Status,
        reason: str,
        message: Message | None,
        metadata: dict[str, Any],
    ) -> None:
        cost = self.cost_of.plan(sent.instructions.plan)
        asked_only = sent.instructions.phase == "budget"
        if metadata.get(wire.keys.PARAMETERS) == self.cost_of.dense().parameters:
            cost = self.cost_of.dense()
        self.ledger.add(
            NodeRow(
                **sent.row,
                status=status,
                reason=reason,
                bytes_up=_bytes_up(message),
                parameters=0 if asked_only else cost.parameters,
                macs_per_example=0 if asked_only else cost.macs,
                seconds=metadata.get(wire.keys.SECONDS, 0.0),
                **({} if asked_only else _work(metadata, cost)),
            )
        )


_SIDES = ("examples", "forward_macs"), ("eval_examples", "eval_macs")


def _work(metadata: dict[str, Any], cost: Cost) -> dict[str, Any]:
    """Read what a node did; None is unknown, and why is said.

    A mod cannot count: there the app's examples are taken at the dense model's MACs.
    """
    keys = {
        "examples": wire.keys.EXAMPLES,
        "eval_examples": wire.keys.EVAL_EXAMPLES,
        "forward_macs": wire.keys.MACS,
        "eval_macs": wire.keys.EVAL_MACS,
    }
    work = {column: metadata.get(key) for column, key in keys.items()}
    why = metadata.get(wire.keys.UNCOUNTED, "")
    if not why and all(count is None for count in work.values()):
        why = "the node did not say what it did"
    elif not why and wire.keys.MACS not in metadata:
        for column, macs in _SIDES:
            count = int(work[column] or 0)
            work[column] = count
            work[macs] = None if cost.macs is None else count * cost.macs
        why = cost.uncounted
    return {**work, "uncounted": visible(why)}


def _bytes_up(message: Message | None) -> int:
    """Count what a reply moved; what no wire could carry moved nothing."""
    if message is None or not message.has_content():
        return 0
    try:
        return wire.count_bytes(message.content)
    except ValueError:  # such as half a character in a text
        return 0
