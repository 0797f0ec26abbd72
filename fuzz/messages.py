"""Targets that read whole messages: nothing that is refused leaves a trace.

A real request or reply is changed as the fuzzer says. The node's oracle: what it reads
fits its model. The server's: a refused reply changes nothing but its own row of the
ledger, the average is that of the other node alone, and what comes out of the inner
strategy is finite numbers.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian
from flwr.supercore.task_identity import TaskIdentity

from examples.inprocess import InProcessGrid, over_the_wire
from flwr_autoflip import wire
from flwr_autoflip.client.client import AutoFlipClient, client_app
from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.codec import encode_plan, plan_digest
from flwr_autoflip.graph.pack import pack
from flwr_autoflip.graph.shrink import describe
from flwr_autoflip.ledger.cost import CostOf
from flwr_autoflip.ledger.ledger import Ledger, total
from flwr_autoflip.server.round.aggregate import aggregate
from flwr_autoflip.server.round.exchange import Answer, Exchange
from flwr_autoflip.wire.instructions import PAYLOADS

from .decoders import ENCODINGS
from .draw import Draw, change_content
from .harness import target
from .model import ARRAYS, EXAMPLE, LAYOUT, MODEL, PLANS, Net

COST_OF = CostOf(MODEL, EXAMPLE)
OWN = describe(MODEL)
HONEST, CHANGED = 100, 101
INNER = (FedAvg, FedMedian)
PHASES: tuple[wire.keys.Phase, ...] = ("train", "evaluate", "explore", "budget")


class Client(AutoFlipClient):
    """Moves every weight a little."""

    def __init__(self, context: Any) -> None:
        super().__init__(Net, context)

    def train(self, model: Any, config: Any) -> Any:
        """Move weights by steps that differ."""
        for place, parameter in enumerate(model.parameters()):
            parameter.data += 0.01 + 0.001 * place
        return 3, {"loss": 0.5}

    def test(self, model: Any, config: Any) -> Any:
        """Say a loss."""
        return 0.5, 3, {}


APPS = (client_app(Client), ClientApp(lambda context: Client(context).to_client()))


def instructions_of(draw: Draw) -> wire.Instructions:
    """Give instructions of any phase, payload, plan and encoding."""
    phase, plan, encoding = draw.pick(PHASES), draw.pick(PLANS), draw.pick(ENCODINGS)
    payload, regrow = draw.pick(PAYLOADS[phase]), draw.number() % 4 == 1
    if phase == "budget":
        return wire.Instructions.for_budget(plan)
    return wire.Instructions.of(
        phase, plan, ARRAYS, encoding, payload=payload, regrow=regrow
    )


def template() -> RecordDict:
    """What an inner strategy sends."""
    return RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord({"lr": 0.1})})


SEEDS = [
    bytes([phase, number % 3, number // 2, number % 2, 0, number % 2]) + more
    for phase in range(4)
    for number in range(6)
    for more in (b"", bytes([1, 0, number, 5 * number, 7, 3]), bytes([1, 1, 2, 4, 3]))
]
"""Choices that lead to every phase, plan and encoding, whole and changed."""


@target(SEEDS, 64)
def request(data: bytes) -> Iterator[bool]:
    """Read a changed request, on a node that knows its model or one that does not."""
    draw = Draw(data)
    content = wire.request_content(instructions_of(draw), template(), b"run")
    own = OWN if draw.number() % 2 else None
    for _ in range(draw.number() % 3):
        content = change_content(draw, content)
    if not wire.is_ours(content):
        raise WireError("passes through")
    found = wire.read_request(content, own)
    asked = found.instructions
    small = {} if asked.phase == "budget" else found.arrays()
    yield True
    assert asked.digest == plan_digest(encode_plan(asked.plan), asked.plan.layout)
    for name, part in small.items():
        assert part.shape == asked.plan.small_shape(name)
        assert np.isfinite(part).all()


@target(SEEDS, 64)
def reply(data: bytes) -> Iterator[bool]:
    """Read one honest reply and one changed one, and average what was accepted."""
    draw = Draw(data)
    asked, grid = instructions_of(draw), InProcessGrid(draw.pick(APPS), 2)
    ledger = Ledger()
    exchange = Exchange(ledger, COST_OF, wire.keys.NUM_EXAMPLES)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    kind = wire.keys.message_type(asked.phase)
    work = [
        (Message(template(), dst_node_id=n, message_type=kind), asked)
        for n in (HONEST, CHANGED)
    ]
    replies = [grid.answer(message) for message in exchange.requests(1, work)]
    assert not any(reply.has_error() for reply in replies)
    content = replies[1].content
    for _ in range(draw.number() % 3):
        content = change_content(draw, content)
    try:
        replies[1].content = over_the_wire(content)
    except (ValueError, TypeError) as error:
        raise WireError("Flower cannot carry it") from error
    if draw.number() % 8 == 1:
        replies[1].metadata.__dict__["_src_node_id"] = HONEST
    answers = exchange.replies(replies, lambda reply, asked: None)
    yield len(answers) == 2
    check_books(ledger, answers, exchange)
    inner = draw.pick(INNER)()
    if asked.phase == "train":
        check_average(inner, answers, asked)
    elif asked.phase == "evaluate":
        for one in answers:
            wire.inner_reply(one.message, None, one.reply, exchange.weight_key)
        check_metrics(inner.aggregate_evaluate(1, [one.message for one in answers]))


def check_books(
    ledger: Ledger, answers: list[Answer[None]], exchange: Exchange
) -> None:
    """Assert one row a node, finite sums, and that the honest node counts."""
    rows = list(ledger.rows)
    assert sorted(row["node"] for row in rows) == [HONEST, CHANGED]
    ok = {row["node"] for row in rows if row["status"] == "ok"}
    assert ok == {answer.message.metadata.src_node_id for answer in answers}
    assert ok == {HONEST, CHANGED} - exchange.lost
    assert HONEST in ok
    for key in ("bytes_up", "bytes_down", "macs", "examples", "eval_examples"):
        assert 0 <= total(rows, key) < 2**80
    assert all(0 <= row["seconds"] < 2**60 for row in rows)
    assert all(len(row["reason"]) < 1000 for row in rows)
    assert all(row["reason"].isprintable() for row in rows)


def check_metrics(metrics: Any) -> None:
    """Assert that averaged metrics are finite numbers with names that can be shown."""
    for name, value in (metrics or {}).items():
        assert name.isprintable()
        assert np.isfinite(np.asarray(value, np.float64)).all()


def check_average(
    inner: Any, answers: list[Any], instructions: wire.Instructions
) -> None:
    """Assert that the average is finite, and FedAvg's the mean of what was accepted."""
    weights = np.array([float(a.reply.num_examples) for a in answers])
    values = [a.reply.values for a in answers]
    mean = np.einsum("n,nv->v", weights / weights.sum(), values)
    small = all(np.abs(value).max() < 10 for value in values)
    for answer in answers:
        report = wire.report_of(answer.reply, instructions)
        assert all((part >= 0).all() for part in report.values())
    arrays, metrics = aggregate(inner, 1, answers, ARRAYS, zero=False)
    check_metrics(metrics)
    assert arrays is not None
    dense = wire.from_arrayrecord(arrays)
    for spec in LAYOUT.tensors:
        assert np.isfinite(dense[spec.name]).all()
        assert dense[spec.name].dtype.name == spec.dtype
    if small and type(inner) is FedAvg:
        kept = pack(dense, instructions.reply_plan).astype(np.float64)
        np.testing.assert_allclose(kept, mean, rtol=1e-3, atol=0.51)
