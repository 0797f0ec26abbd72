"""Whole messages from an attacker: refused, the round goes on, nothing is changed."""

import json
import random
import time
import tokenize
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import EXAMPLE, Client, TinyNet, guided, initial, plain_app
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Krum, Strategy
from grid import LocalGrid
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flwr_autoflip import AutoFlip, AutoFlipError, autoflip_mod, client_app, wire
from flwr_autoflip.errors import LONGEST, WireError
from flwr_autoflip.ledger.ledger import node_rows, total
from fuzz.draw import Draw, change_content

NODES, BAD = 4, 100
Fault = Callable[[int, Message], Message | None]


def one_node() -> FedAvg:
    return FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)


def build(inner: Strategy | None = None, **options: Any) -> AutoFlip:
    inner = inner or one_node()
    options = guided(**{"policy": "random", "threshold": "2x", **options})
    return AutoFlip(inner, TinyNet(), EXAMPLE, **options)


def run(
    strategy: AutoFlip, fault: Fault | None = None, rounds: int = 1
) -> dict[str, np.ndarray]:
    random.seed(0)  # sums of floats depend on the order in which nodes are sampled
    grid = LocalGrid(client_app(Client), NODES, fault)
    result = strategy.start(grid, initial(), num_rounds=rounds)
    return {name: array.numpy() for name, array in result.arrays.items()}


def without_bad(node: int, reply: Message) -> Message | None:
    return None if node == BAD else reply


# --- Server: one reply ---


def npy(text: bytes, body: bytes = b"") -> bytes:
    """A file of NumPy's with any header."""
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def npz() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", b"x")
    return file.getvalue()


HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999,), }"
DATA = {
    "an archive": npz(),
    "a terabyte": npy(HUGE),
    "an object": npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"x"),
    "no Python": npy(b"{'descr': (((", b"1234"),
    "deep Python": npy(b"(" * 9000),
    "unhashable": npy(b"{[]: 1}"),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", DATA)
def test_an_array_is_what_numpy_saves_or_refused(kind: str) -> None:
    foreign = Array("float32", (1,), "numpy.ndarray", DATA[kind])

    with pytest.raises(WireError, match="cannot be read"):
        wire.single_array(ArrayRecord({"values": foreign}))


def test_numpys_own_reader_would_have_raised_anything() -> None:
    raised = []
    for data in DATA.values():
        try:
            raised.append(type(np.load(BytesIO(data), allow_pickle=False)))
        except (
            MemoryError,
            EOFError,
            TypeError,
            ValueError,
            tokenize.TokenError,
        ) as error:
            raised.append(type(error))
    assert not set(raised) <= {ValueError, TypeError, EOFError}  # what was expected


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "float64"])
@pytest.mark.parametrize("size", [0, 1, 7, 100_001])
def test_an_array_comes_as_it_was_saved(dtype: str, size: int) -> None:
    values = (np.arange(size) % 200).astype(dtype)

    found = wire.single_array(ArrayRecord({"x": Array(values)}))

    np.testing.assert_array_equal(found, values, strict=True)
    assert not found.flags.owndata  # no copy was made


def spoil_data(reply: Message) -> None:
    (key,) = reply.content.array_records
    array = Array("float32", (1,), "numpy.ndarray", npz())
    reply.content[key] = ArrayRecord({"values": array})


def spoil_values(value: float) -> Callable[[Message], None]:
    def spoil(reply: Message) -> None:
        (key,) = reply.content.array_records
        values = wire.single_array(reply.content[key])
        full = np.full(values.shape, value, values.dtype)
        reply.content[key] = ArrayRecord({"values": Array(full)})

    return spoil


def spoil_receipt(key: str, value: Any) -> Callable[[Message], None]:
    def spoil(reply: Message) -> None:
        name = "metrics" if key == "num-examples" else "autoflip"
        reply.content[name][key] = value

    return spoil


def spoil_kind(reply: Message) -> None:
    (key,) = reply.content.array_records
    (array,) = reply.content[key].values()
    foreign = Array(array.dtype, array.shape, "pickle", array.data)
    reply.content[key] = ArrayRecord({"values": foreign})


REFUSED: dict[str, tuple[Callable[[Message], None], str]] = {
    "an archive": (spoil_data, "cannot be read"),
    "a pickle, it says": (spoil_kind, "its type is 'pickle'"),
    "values whose mean is infinite": (spoil_values(3.4e38), "beyond 2^60"),
    "a weight that all others vanish beside": (
        spoil_receipt("num-examples", 1e308),
        "at most 2^53",
    ),
    "work that no sum holds": (spoil_receipt("autoflip-examples", 1e308), "2^53"),
    "time that no sum holds": (spoil_receipt("autoflip-seconds", 1e300), "2^53"),
    "a time below zero": (spoil_receipt("autoflip-seconds", -1.0), "2^53"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_hostile_reply_is_refused_and_changes_nothing(kind: str) -> None:
    spoil, reason = REFUSED[kind]

    def fault(node: int, reply: Message) -> Message | None:
        if node <= BAD + 1:  # two of them: what one alone does not bring about
            spoil(reply)
        return reply

    strategy = build()
    found = run(strategy, fault)
    expected = run(build(), lambda node, reply: None if node <= BAD + 1 else reply)

    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    rows = [row for row in node_rows(strategy.ledger.rows) if row["node"] <= BAD + 1]
    assert [row["status"] for row in rows] == ["refused"] * 2
    assert all(reason in row["reason"] for row in rows)
    assert np.isfinite(total(node_rows(strategy.ledger.rows), "macs"))


@pytest.mark.parametrize("inner", [FedAvg, FedAdam])
def test_an_arrays_name_is_nobodys_business(inner: type[FedAvg]) -> None:
    def rename(node: int, reply: Message) -> Message | None:
        if node == BAD:
            (key,) = reply.content.array_records
            (array,) = reply.content[key].values()
            reply.content[key] = ArrayRecord({"surprise": array})
        return reply

    found = run(build(inner(fraction_evaluate=0.0)), rename)
    expected = run(build(inner(fraction_evaluate=0.0)))

    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def one_liar(node: int, reply: Message) -> Message:
    """One client that adds a little to what it trained, with the largest weight."""
    if node == BAD:
        (key,) = reply.content.array_records
        values = wire.single_array(reply.content[key])
        reply.content[key] = ArrayRecord({"values": Array(values + np.float32(0.02))})
        spoil_receipt("num-examples", 2**53)(reply)
    return reply


def moved_by_a_liar(inner: Strategy) -> np.ndarray:
    strategy = build(inner)
    found, honest = run(strategy, one_liar), run(build(), without_bad)
    difference: np.ndarray = found["fc2.weight"] - honest["fc2.weight"]
    return strategy.deployable_plan().take("fc2.weight", difference)


def test_the_average_believes_a_client() -> None:
    assert moved_by_a_liar(one_node()).mean() == pytest.approx(0.02, rel=0.2)


def test_values_far_larger_than_the_others_are_not_averaged() -> None:
    def fault(node: int, reply: Message) -> Message:
        if node == BAD:
            spoil_values(2.0**60)(reply)
        return reply

    strategy = build()
    found, expected = run(strategy, fault), run(build(), without_bad)

    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    (row,) = [row for row in node_rows(strategy.ledger.rows) if row["node"] == BAD]
    assert row["status"] == "refused"
    assert "its parameters moved by" in row["reason"]
    assert "lower the learning rate" in row["reason"]


@pytest.mark.parametrize("robust", [FedMedian, Krum])
def test_a_robust_strategy_does_not(robust: type[FedAvg]) -> None:
    extra = {"num_malicious_nodes": 1} if robust is Krum else {}
    inner = robust(fraction_evaluate=0.0, **extra)

    assert abs(moved_by_a_liar(inner).mean()) < 0.005


def test_eight_bits_that_overflow_on_the_server_are_refused() -> None:
    def fault(node: int, reply: Message) -> Message | None:
        if node == BAD:
            (key,) = reply.content.array_records
            data = wire.single_array(reply.content[key]).copy()
            data[:4] = np.float32([2.6e36]).view(np.uint8)  # a scale: 127 of it fit
            data[-300:] = 127
            reply.content[key] = ArrayRecord({"values": Array(data)})
        return reply

    strategy = build(value_dtype="int8")
    found = run(strategy, fault)

    assert all(np.isfinite(array).all() for array in found.values())
    row = next(row for row in node_rows(strategy.ledger.rows) if row["node"] == BAD)
    assert row["status"] == "refused"


def test_nobody_answers_for_another_node() -> None:
    open_requests: list[Message] = []
    grid = LocalGrid(client_app(Client), NODES)
    send = grid.send_and_receive

    def with_forgery(messages: Any, *, timeout: float | None = None) -> list[Message]:
        messages = list(messages)
        replies = list(send(messages))
        if not messages:
            return replies
        forged = Message(replies[1].content, reply_to=messages[0])
        forged.metadata.__dict__["_src_node_id"] = BAD + 1
        open_requests.extend(messages)
        return [forged, *replies]

    grid.send_and_receive = with_forgery  # type: ignore[method-assign]
    strategy = build()
    random.seed(0)
    result = strategy.start(grid, initial(), num_rounds=1)

    expected = run(build())
    for name, array in expected.items():
        np.testing.assert_array_equal(result.arrays[name].numpy(), array)
    assert [row["status"] for row in node_rows(strategy.ledger.rows)] == ["ok"] * NODES
    assert len(open_requests) == NODES


def test_a_reason_is_a_short_line() -> None:
    class Loud(Client):
        def train(self, model: Any, config: Any) -> Any:
            if self.node == 0:
                raise RuntimeError("\x1b[31m" + "no\n" * 10**6)
            return super().train(model, config)

    strategy = build()
    grid = LocalGrid(client_app(Loud), NODES)
    strategy.start(grid, initial(), num_rounds=1)

    row = next(row for row in node_rows(strategy.ledger.rows) if row["node"] == BAD)
    assert row["status"] == "failed"
    assert row["reason"].startswith("RuntimeError: ?[31mno no")
    assert len(row["reason"]) == LONGEST
    assert row["reason"].isprintable()


@settings(max_examples=15, deadline=None)
@given(st.binary(min_size=12, max_size=48))
@example(b"\x86\x03\x00\x02\x00\xb1u\x00\x00\x00\x00\x00")  # half a character
def test_any_change_of_a_reply_is_harmless(data: bytes) -> None:
    changed = False

    def fault(node: int, reply: Message) -> Message | None:
        nonlocal changed
        if node == BAD and not changed:
            reply.content, changed = change_content(Draw(data), reply.content), True
        return reply

    strategy = build(rescale=False)
    found = run(strategy, fault)

    rows = node_rows(strategy.ledger.rows)
    (row,) = [row for row in rows if row["node"] == BAD]
    assert [r["status"] for r in rows if r["node"] != BAD].count("ok") >= NODES - 1
    assert all(np.isfinite(array).all() for array in found.values())
    if row["status"] != "ok":
        for name, array in run(build(rescale=False), without_bad).items():
            np.testing.assert_array_equal(found[name], array)


# --- Node: one request ---


def request_to(node: Context, **changes: Any) -> Message:
    """A whole request as the server's first one is, some keys of it changed."""
    grid = LocalGrid(client_app(Client), 1)
    build(**changes).start(grid, initial(), num_rounds=1)
    return grid.log[-1][1]


def context(budget: str | None = None) -> Context:
    config: dict[str, Any] = {"partition-id": 0, "num-partitions": 1}
    if budget is not None:
        config["autoflip-budget"] = budget
    return Context(
        run_id=1, node_id=100, node_config=config, state=RecordDict(), run_config={}
    )


def held(node: Context) -> dict[str, dict[str, Any]]:
    return {key: dict(record) for key, record in node.state.items()}


WRONG = {
    "autoflip-layout": ["x"],
    "autoflip-plan": "text",
    "autoflip-plan-digest": 3,
    "autoflip-dtype": [1],
    "autoflip-regrow": "yes",
    "autoflip-phase": b"train",
    "autoflip-budget": 0.5,
    "autoflip-probe": 1,
}


@pytest.mark.parametrize("key", WRONG)
def test_a_key_of_another_type_is_refused(key: str) -> None:
    node = context()
    request = request_to(node)
    config = dict(request.content["config"]) | {key: WRONG[key]}
    values = wire.single_array(request.content["arrays"])

    with pytest.raises(WireError, match=f"{key} must be|{key.removeprefix('auto')}"):
        wire.read_request(values, config, node.state)
    assert held(node) == {}


@pytest.mark.parametrize("app", [client_app(Client), plain_app([autoflip_mod])])
def test_work_beyond_a_nodes_budget_leaves_no_trace(app: Any) -> None:
    node = context("macs:0.5")
    request = request_to(node)

    with pytest.raises(WireError, match="budget"):
        app(request, node)

    assert held(node) == {}


def test_another_models_plan_leaves_no_trace() -> None:
    class Other(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = type(self.fc2)(6 * 16, 9)
            self.fc2 = type(self.fc2)(9, 3)

    strategy = AutoFlip(one_node(), Other(), EXAMPLE, policy="random", threshold="2x")
    grid = LocalGrid(client_app(Client), 1)
    with pytest.raises(AutoFlipError, match="no node's training counted"):
        strategy.start(grid, ArrayRecord(Other().state_dict()), num_rounds=1)

    assert [row["status"] for row in node_rows(strategy.ledger.rows)] == ["failed"]
    assert held(grid.contexts[100]) == {}


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=12, max_size=48))
def test_any_change_of_a_request_is_an_answer_or_no_trace(data: bytes) -> None:
    node, request = context(), REQUEST
    content = change_content(Draw(data), request.content)
    message = Message(content, dst_node_id=100, message_type="train")
    before = held(node)

    try:
        reply = client_app(Client)(message, node)
    except ValueError:  # WireError and all of its family, or Flower's own
        assert held(node) == before
        return
    # Values that a change made huge may train to NaN; the server refuses those.
    values = wire.single_array(next(iter(reply.content.array_records.values())))
    assert values.dtype == np.float32
    assert values.ndim == 1


REQUEST = request_to(context())


# --- Rounds ---


def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(build(), rounds=2)
    real, chance = time.time, random.Random(0)
    monkeypatch.setattr(time, "time", lambda: real() + chance.uniform(-1e6, 1e6))

    strategy = build()
    found = run(strategy, rounds=2)

    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    assert all(0 <= row["seconds"] < 60 for row in node_rows(strategy.ledger.rows))


# --- No code, no paths ---


def test_nothing_unpickles_or_evaluates() -> None:
    import ast

    import flwr_autoflip

    forbidden = {"pickle", "marshal", "shelve", "dill", "eval", "exec", "__import__"}
    for path in Path(flwr_autoflip.__file__).parent.rglob("*.py"):
        for item in ast.walk(ast.parse(path.read_text())):
            if isinstance(item, ast.Import):
                found = {alias.name for alias in item.names}
            elif isinstance(item, ast.ImportFrom):
                found = {item.module or ""}
            elif isinstance(item, ast.Call) and isinstance(item.func, ast.Name):
                found = {item.func.id}
            elif isinstance(item, ast.keyword):
                found = {"pickle"} if item.arg == "allow_pickle" else set()
            else:
                continue
            assert not found & forbidden, f"{path}:{item.lineno}"


def test_a_message_names_no_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "kept"

    def fault(node: int, reply: Message) -> Message | None:
        reply.content["autoflip"]["autoflip-path"] = "../../evil"
        reply.content["autoflip"]["../evil"] = 1
        return reply

    strategy = build(policy="autoflip", checkpoint_dir=kept)
    run(strategy, fault)

    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert all(name.startswith("kept/") for name in names)
    guidance = {name for name in names if name.endswith(".guidance")}
    assert guidance == {f"kept/guidance/node-{100 + i}.guidance" for i in range(NODES)}
    lines = (kept / "ledger.jsonl").read_text().splitlines()
    assert node_rows(map(json.loads, lines))[0]["node"] >= BAD
