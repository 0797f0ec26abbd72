"""Targets that read whole messages: nothing that is refused leaves a trace.

A real request or reply is changed as the fuzzer says. The node's oracle: after a
refusal its state is what it was. The server's: a refused reply changes nothing but its
own row of the ledger, and the average is that of the other node alone.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAvg, FedMedian
from flwr.supercore.task_identity import TaskIdentity

from examples.inprocess import over_the_wire
from flwr_autoflip import wire
from flwr_autoflip.client.client import budget_receipt, receipt_of
from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.codec import encode_plan, plan_digest
from flwr_autoflip.graph.pack import pack
from flwr_autoflip.ledger.cost import CostOf
from flwr_autoflip.ledger.ledger import Ledger, total
from flwr_autoflip.server.aggregate import aggregate
from flwr_autoflip.server.exchange import Answer, Exchange
from flwr_autoflip.wire.encoding import DTYPES, Encoding
from flwr_autoflip.wire.probe import append_probe

from .decoders import ENCODINGS
from .draw import ODD, ODD_NAMES, Draw, change_content, change_record, rebuild
from .model import ARRAYS, EXAMPLE, LAYOUT, MASKED, MODEL, PLANS, SMALL

COST_OF = CostOf(MODEL, EXAMPLE)
HONEST, CHANGED = 100, 101
INNER = (FedAvg, FedMedian)


def template() -> RecordDict:
    """What an inner strategy sends."""
    return RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord({"lr": 0.1})})


# --- Node ---


def make_orders(draw: Draw) -> wire.Orders:
    """Give orders of any phase, plan and encoding."""
    phase: wire.Phase = draw.pick(("train", "explore", "evaluate", "budget"))
    plan, encoding = draw.pick(PLANS), draw.pick(ENCODINGS)
    rest: dict[str, Any] = {"regrow": draw.number() % 2 == 1}
    if phase == "train":
        rest["probe"] = draw.number() % 2 == 1
    orders = wire.Orders.of(phase, plan, ARRAYS, encoding, **rest)
    if phase == "budget":
        return wire.Orders(phase, plan, np.zeros(0, np.float32))
    return orders


def fuzz_request(data: bytes) -> bool:
    """Read a changed request on a node that may hold a plan already."""
    draw = Draw(data)
    state, held, before = RecordDict(), wire.Held(), None
    if draw.number() % 2:
        before = SMALL
        first = wire.Orders.of("train", SMALL, ARRAYS, Encoding())
        content, held, _ = wire.request_content(first, template(), held, "message")
        request = wire.read_request(first.encoded, dict(content["config"]), state)
        request.remember(state)
    orders = make_orders(draw)
    content, _, _ = wire.request_content(orders, template(), held, "message", before)
    config, array = dict(content["config"]), content["arrays"]
    if draw.number() % 4:
        config = change_record(draw, config)
    if draw.number() % 4 == 0:
        array = change_content(draw, RecordDict({"arrays": array})).get("arrays", array)
    old = snapshot(state)
    if not wire.is_ours(config) or not isinstance(array, ArrayRecord):
        return False
    try:
        request = wire.read_request(wire.single_array(array), config, state)
        small = request.arrays() if request.orders.phase != "budget" else {}
    except WireError:
        assert snapshot(state) == old
        return False
    read = request.orders
    assert snapshot(state) == old
    assert request.digest == plan_digest(encode_plan(read.plan), read.plan.layout)
    for name, part in small.items():
        assert part.shape == read.plan.small_shape(name)
        assert np.isfinite(part).all()
    request.remember(state)
    again = wire.read_request(
        wire.single_array(array), _digest_alone(config), RecordDict(dict(state))
    )
    assert encode_plan(again.orders.plan) == encode_plan(read.plan)
    return True


def _digest_alone(config: dict[str, Any]) -> dict[str, Any]:
    known = ("autoflip-layout", "autoflip-plan", "autoflip-plan-change")
    return {key: value for key, value in config.items() if key not in known}


def snapshot(state: RecordDict) -> dict[str, Any]:
    """Copy what a node's state holds."""
    return {key: dict(record) for key, record in state.items()}


# --- Server ---


def ask(exchange: Exchange, orders: wire.Orders) -> list[Message]:
    """Send both nodes the same orders."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    kind = wire.message_type(orders.phase)
    templates = [
        Message(template(), dst_node_id=node, message_type=kind)
        for node in (HONEST, CHANGED)
    ]
    messages = exchange.requests(1, [(message, orders) for message in templates])
    for number, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = f"{number}"
    return messages


def answer(request: Message, orders: wire.Orders, step: float) -> RecordDict:
    """Answer as a node does that moved every value by ``step``."""
    content, state = request.content, RecordDict()
    (arrays,), (config,) = (
        content.array_records.values(),
        content.config_records.values(),
    )
    read = wire.read_request(wire.single_array(arrays), dict(config), state)
    if orders.phase == "budget":
        receipt = budget_receipt(read, None)
        return wire.train_reply(np.zeros(0, np.float32), 1, receipt, content)
    cost = COST_OF.plan(orders.plan)
    receipt = receipt_of(read, cost.parameters, 0.25)
    if orders.phase == "evaluate":
        return wire.evaluate_reply(0.5, 3, receipt)
    start = wire.starting_values(read.orders)
    trained = start + np.float32(step)
    values = wire.encode_trained(read.orders, trained, state)
    if orders.probe:
        values = append_probe(values, {}, orders.reply_plan)
    metrics = {"loss": 0.5, **receipt}
    if "fitins.config" not in content:
        return wire.train_reply(values, 3, metrics, content)
    reply = wire.numpy_train_reply(3, metrics)
    reply["fitres.parameters"] = ArrayRecord({"0": Array(values)})
    return reply


def fuzz_reply(data: bytes) -> bool:
    """Read one honest reply and one changed one, and average what was accepted."""
    draw = Draw(data)
    phase: wire.Phase = draw.pick(("train", "train", "evaluate", "budget"))
    plan, dtype, compress = draw.pick(PLANS), draw.pick(DTYPES), draw.number() % 2 == 1
    orders = wire.Orders.of(phase, plan, ARRAYS, Encoding(dtype, compress))
    if phase == "train" and draw.number() % 4 == 1:
        orders = wire.Orders.of(
            phase, plan, ARRAYS, Encoding(dtype), probe=True, regrow=plan is MASKED
        )
    if phase == "budget":
        orders = wire.Orders(phase, plan, np.zeros(0, np.float32))
    ledger = Ledger()
    numpy = phase == "train" and draw.number() % 4 == 1
    api: wire.ClientApi = "numpy" if numpy else "message"
    exchange = Exchange(ledger, COST_OF, api, wire.NUM_EXAMPLES)
    requests = ask(exchange, orders)
    contents = [answer(request, orders, 0.01) for request in requests]
    for _ in range(draw.number() % 3):
        contents[1] = change_content(draw, contents[1])
    try:
        contents[1] = over_the_wire(contents[1])
    except (ValueError, TypeError):
        return False  # Flower cannot carry it
    pairs = zip(contents, requests, strict=True)
    replies = [Message(content, reply_to=request) for content, request in pairs]
    if draw.number() % 8 == 1:
        replies[1].metadata.__dict__["_src_node_id"] = HONEST
    answers = exchange.replies(replies, lambda reply, orders: None)
    check_books(ledger, answers, exchange)
    accepted = len(answers)
    if phase == "train" and answers:
        check_average(answers, orders)  # takes them, one after the other
    return accepted == 2


def fuzz_metrics(data: bytes) -> bool:
    """Read metrics and receipts of any names and values beside an honest node's.

    The honest node's work counts, whatever the other says, and what comes out of the
    inner strategy is finite numbers.
    """
    draw = Draw(data)
    phase: wire.Phase = draw.pick(("train", "evaluate"))
    orders = wire.Orders.of(phase, SMALL, ARRAYS, Encoding())
    numpy = draw.number() % 2 == 1 and phase == "train"
    api: wire.ClientApi = "numpy" if numpy else "message"
    ledger = Ledger()
    exchange = Exchange(ledger, COST_OF, api, wire.NUM_EXAMPLES)
    requests = ask(exchange, orders)
    contents = [answer(request, orders, 0.01) for request in requests]
    for _ in range(draw.number() % 4):
        contents[1] = with_value(draw, contents[1])
    try:
        contents[1] = over_the_wire(contents[1])
    except (ValueError, TypeError):
        return False  # Flower cannot carry it
    pairs = zip(contents, requests, strict=True)
    replies = [Message(content, reply_to=request) for content, request in pairs]
    answers = exchange.replies(replies, lambda reply, orders: None)
    check_books(ledger, answers, exchange)
    assert HONEST in exchange.held
    accepted, inner = len(answers), draw.pick(INNER)()
    if phase == "train":
        arrays, metrics = aggregate(inner, 1, answers, ARRAYS, zero=False)
        assert arrays is not None
    else:
        for one in answers:
            wire.inner_reply(one.message, None, one.reply, wire.NUM_EXAMPLES)
        metrics = inner.aggregate_evaluate(1, [one.message for one in answers])
    for name, value in (metrics or {}).items():
        assert name.isprintable()
        assert np.isfinite(np.asarray(value, np.float64)).all()
    return accepted == 2


def with_value(draw: Draw, content: RecordDict) -> RecordDict:
    """Set a metric or a receipt's key, a known or a foreign one, to any value."""
    records: dict[str, Any] = dict(content)
    kinds = (ConfigRecord, MetricRecord)
    place = draw.pick([key for key in records if isinstance(records[key], kinds)])
    values = dict(records[place])
    known = (*values, "loss", "num-examples", "num_examples", "accuracy", "more")
    values[draw.pick((*known, *ODD_NAMES))] = draw.pick(ODD)
    return RecordDict({**records, place: rebuild(type(records[place]), values)})


def seed_metrics() -> Iterable[bytes]:
    """Give whole replies, and some with a value that is odd."""
    for phase in range(2):
        yield bytes([phase, 0, 0, 0])
        for place in range(2):
            for value in (5, 15, 20, 34, 36):
                yield bytes([phase, 0, 1, place, 1, value, 0])


def check_books(
    ledger: Ledger, answers: list[Answer[None]], exchange: Exchange
) -> None:
    """Assert one row a node, finite sums, and that refused nodes hold nothing."""
    rows = list(ledger.rows)
    assert sorted(row["node"] for row in rows) == [HONEST, CHANGED]
    ok = {row["node"] for row in rows if row["status"] == "ok"}
    assert ok == {a.message.metadata.src_node_id for a in answers} == set(exchange.held)
    for key in ("bytes_up", "bytes_down", "macs", "examples", "eval_examples"):
        assert 0 <= total(rows, key) < 2**80
    assert all(0 <= row["seconds"] < 2**60 for row in rows)
    assert all(len(row["reason"]) < 1000 for row in rows)
    assert all(row["reason"].isprintable() for row in rows)


def check_average(answers: list[Answer[None]], orders: wire.Orders) -> None:
    """Assert that the average is the mean of what was accepted, and finite."""
    weights = np.array([float(a.reply.num_examples) for a in answers])
    sums = np.einsum(
        "n,nv->v", weights / weights.sum(), [a.reply.values for a in answers]
    )
    small = all(np.abs(a.reply.values).max() < 10 for a in answers)
    arrays, _ = aggregate(FedAvg(), 1, answers, ARRAYS, zero=False)
    assert arrays is not None
    dense = wire.from_arrayrecord(arrays)
    for spec in LAYOUT.tensors:
        assert np.isfinite(dense[spec.name]).all()
        assert dense[spec.name].dtype.name == spec.dtype
    if small:
        kept = flat(dense, orders)
        np.testing.assert_allclose(kept, sums, rtol=1e-3, atol=0.51)


def flat(dense: dict[str, Any], orders: wire.Orders) -> Any:
    """Flatten what a reply's plan keeps."""
    return pack(dense, orders.reply_plan).astype(np.float64)


def seeds() -> Iterable[bytes]:
    """Give choices that lead to every phase, plan and encoding."""
    for phase in range(4):
        for encoding in range(6):
            yield bytes([phase % 2, phase, encoding % 3, encoding, 0, 0, 4, 4])
            yield bytes([phase, encoding % 3, encoding // 2, encoding % 2])
            yield bytes(
                [phase, encoding % 3, encoding // 2, 0, 0, encoding, 2, 4, 3, 9]
            )
