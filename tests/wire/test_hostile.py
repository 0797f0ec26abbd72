"""Whole messages from an attacker: refused, the round goes on, nothing is changed."""

import ast
import json
import random
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asked import Asked, node
from federation import EXAMPLE, Client, TinyNet, initial, plain_app
from flwr.app import Array, ArrayRecord, Message
from flwr.serverapp.strategy import FedAvg, FedMedian, Krum, Strategy
from grid import LocalGrid
from hypothesis import given, settings
from hypothesis import strategies as st

import flwr_autoflip
from flwr_autoflip import AutoFlip, autoflip_mod, client_app, wire
from flwr_autoflip.errors import LONGEST, WireError
from fuzz.draw import Draw, change_content

NODES, BAD = 4, 100
Spoil = Callable[[Message], None]


def spoiled_by(spoil: Spoil) -> Callable[[int, Message], Message]:
    """Give a fault: what node ``BAD`` answers is spoiled."""

    def fault(node: int, reply: Message) -> Message:
        if node == BAD:
            spoil(reply)
        return reply

    return fault


def ask(spoil: Spoil | None = None, **options: Any) -> tuple[Asked, list[Any]]:
    fault = None if spoil is None else spoiled_by(spoil)
    asked = Asked(client_app(Client), NODES, fault)
    return asked, asked.ask(**options)


HONEST = {
    answer.message.metadata.src_node_id: answer.reply.values for answer in ask()[1]
}


def assert_others_count(answers: list[Any]) -> None:
    found = {a.message.metadata.src_node_id: a.reply.values for a in answers}
    assert set(found) >= set(HONEST) - {BAD}
    for other in set(HONEST) - {BAD}:
        np.testing.assert_array_equal(found[other], HONEST[other])


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


def other_array(make: Callable[[Array], Array], name: str = "0") -> Spoil:
    def spoil(reply: Message) -> None:
        (array,) = reply.content["arrays"].values()
        reply.content["arrays"] = ArrayRecord({name: make(array)})

    return spoil


def other_key(key: str, value: Any) -> Spoil:
    def spoil(reply: Message) -> None:
        record = "autoflip" if key.startswith("autoflip") else "metrics"
        reply.content[record][key] = value

    return spoil


def full_of(value: float) -> Callable[[Array], Array]:
    return lambda array: Array(np.full_like(array.numpy(), value))


def overflowing(array: Array) -> Array:
    data = array.numpy()
    data[:4] = np.float32([2.6e36]).view(np.uint8)  # a scale: 127 of it fit
    data[-300:] = 127
    return Array(data)


REFUSED: dict[str, tuple[Spoil, str]] = {
    "an archive": (
        other_array(lambda a: Array("float32", (1,), a.stype, npz())),
        "cannot be read",
    ),
    "a pickle, it says": (
        other_array(lambda a: Array(a.dtype, a.shape, "pickle", a.data)),
        "its type is 'pickle'",
    ),
    "values whose mean is infinite": (other_array(full_of(3.4e38)), "beyond 2^60"),
    "a weight that others vanish beside": (other_key("num-examples", 1e308), "2^53"),
    "a weight of nothing": (other_key("num-examples", 0), "must be positive"),
    "work that no sum holds": (other_key("autoflip-examples", 1e308), "2^53"),
    "time that no sum holds": (other_key("autoflip-seconds", 1e300), "2^53"),
    "a time below zero": (other_key("autoflip-seconds", -1.0), "2^53"),
    "MACs that no sum holds": (other_key("autoflip-macs", 2**63 - 1), "2^62"),
    "another plan": (other_key("autoflip-plan-digest", b"x"), "another plan"),
    "another version": (other_key("autoflip-version", 2), "wire version 1"),
    "a text for a number": (other_key("autoflip-macs", "1"), "must be int, got str"),
    "another model": (other_key("autoflip-parameters", 7), "a model of 7 parameters"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_hostile_reply_is_refused_and_changes_nothing(kind: str) -> None:
    spoil, reason = REFUSED[kind]

    asked, answers = ask(spoil)

    assert_others_count(answers)
    assert [row["status"] for row in asked.rows].count("ok") == len(answers)
    (row,) = [row for row in asked.rows if row["node"] == BAD]
    assert row["status"] == "refused"
    assert reason in row["reason"]
    assert asked.exchange.lost == {BAD}


def test_eight_bits_that_overflow_on_the_server_are_refused() -> None:
    asked, answers = ask(other_array(overflowing), dtype="int8")

    assert len(answers) == NODES - 1
    assert "beyond 2^60" in asked.reasons[0] or "NaN" in asked.reasons[0]


def test_an_arrays_name_is_nobodys_business() -> None:
    _, answers = ask(other_array(lambda array: array, "surprise"))

    assert len(answers) == NODES
    for answer in answers:
        given = answer.message, answer.reply, answer.instructions
        assert list(wire.kept_values(*given)) == ["0"]


def test_nobody_answers_for_another_node() -> None:
    asked = Asked(client_app(Client), NODES)
    send = asked.grid.send_and_receive

    def with_forgery(messages: Any, *, timeout: float | None = None) -> list[Message]:
        replies = list(send(messages))
        forged = Message(replies[1].content, reply_to=messages[0])
        forged.metadata.__dict__["_src_node_id"] = BAD + 1
        return [forged, *replies, replies[2]]

    asked.grid.send_and_receive = with_forgery  # type: ignore[method-assign]
    answers = asked.ask()

    assert [row["status"] for row in asked.rows] == ["ok"] * NODES
    assert_others_count(answers)
    np.testing.assert_array_equal(answers[0].reply.values, HONEST[BAD])


def test_a_reason_is_a_short_line() -> None:
    class Loud(Client):
        def train(self, model: Any, config: Any) -> Any:
            raise RuntimeError("\x1b[31m" + "no\n" * 10**6)

    asked = Asked(client_app(Loud), 1)
    asked.ask()

    (reason,) = asked.reasons
    assert reason.startswith("RuntimeError: ?[31mno no")
    assert len(reason) == LONGEST
    assert reason.isprintable()


# --- What an average believes, and robust strategies do not ---


def one_liar(reply: Message) -> None:
    """Add a little to what was trained, with the largest weight."""
    other_array(lambda array: Array(array.numpy() + np.float32(0.02)))(reply)
    if "num-examples" in reply.content["metrics"]:
        other_key("num-examples", 2**53)(reply)


def moved_by_a_liar(inner: Strategy) -> np.ndarray:
    def run(strategy: AutoFlip, fault: Any) -> Any:
        random.seed(0)  # sums depend on the order in which nodes are sampled
        grid = LocalGrid(client_app(Client), NODES, fault)
        return strategy.start(grid, initial(), num_rounds=1).arrays["fc2.weight"]

    def build(inner: Strategy) -> AutoFlip:
        options: Any = {"method": "random", "macs": 0.5, "value_dtype": "float32"}
        return AutoFlip(inner, TinyNet(), EXAMPLE, **options)

    strategy = build(inner)
    found = run(strategy, spoiled_by(one_liar)).numpy()
    few = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    honest = run(build(few), lambda n, r: None if n == BAD else r).numpy()
    moved: np.ndarray = strategy.deployable_plan.take("fc2.weight", found - honest)
    return moved


def test_the_average_believes_a_client() -> None:
    inner = FedAvg(fraction_evaluate=0.0)
    assert moved_by_a_liar(inner).mean() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("robust", [FedMedian, Krum])
def test_a_robust_strategy_does_not(robust: type[FedAvg]) -> None:
    extra = {"num_malicious_nodes": 1} if robust is Krum else {}
    inner = robust(fraction_evaluate=0.0, **extra)

    assert abs(moved_by_a_liar(inner).mean()) < 0.005


# --- Node: one request ---


def request(**instructions: Any) -> Message:
    """A whole request, as the server sends it."""
    asked = Asked(client_app(Client), 1)
    asked.ask(**instructions)
    return asked.grid.log[-1][1]


@pytest.mark.parametrize("app", [client_app(Client), plain_app([autoflip_mod])])
def test_work_beyond_a_nodes_budget_leaves_no_trace(app: Any) -> None:
    context = node(**{"autoflip-budget": "macs:0.5"})

    with pytest.raises(WireError, match="budget"):
        app(request(dtype="int8"), context)

    assert not context.state


REQUEST = request(dtype="int8")


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=12, max_size=48))
def test_any_change_of_a_request_is_an_answer_or_no_trace(data: bytes) -> None:
    context, content = node(), change_content(Draw(data), REQUEST.content)
    message = Message(content, dst_node_id=100, message_type="train")

    try:
        reply = client_app(Client)(message, context)
    except ValueError:  # WireError and all of its family, or Flower's own
        assert not context.state
        return
    # Values that a change made huge may train to NaN; the server refuses those.
    values = wire.single_array(next(iter(reply.content.array_records.values())))
    assert values.ndim == 1


def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, chance = time.time, random.Random(0)
    monkeypatch.setattr(time, "time", lambda: real() + chance.uniform(-1e6, 1e6))

    asked, answers = ask()

    assert_others_count(answers)
    assert all(0 <= row["seconds"] < 60 for row in asked.rows)


# --- No code, no paths ---


def test_nothing_unpickles_or_evaluates() -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "eval", "exec", "__import__"}
    for path in Path(flwr_autoflip.__file__).parent.rglob("*.py"):
        found = set()
        for item in ast.walk(ast.parse(path.read_text())):
            match item:
                case ast.Import():
                    found |= {alias.name for alias in item.names}
                case ast.ImportFrom():
                    found.add(item.module or "")
                case ast.Call(func=ast.Name(id=name)):
                    found.add(name)
                case ast.keyword(arg="allow_pickle"):
                    found.add("pickle")
        assert not found & forbidden, path


def test_a_message_names_no_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "kept"

    def fault(node: int, reply: Message) -> Message:
        reply.content["autoflip"]["autoflip-path"] = "../../evil"
        reply.content["autoflip"]["../evil"] = 1
        return reply

    inner = FedAvg(fraction_evaluate=0.0)
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, method="paper", checkpoint_dir=kept)
    grid = LocalGrid(client_app(Client), NODES, fault)
    strategy.start(grid, initial(), num_rounds=1)

    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert all(name.startswith("kept/") for name in names)
    assert not any("evil" in name for name in names)
    lines = (kept / "ledger.jsonl").read_text().splitlines()
    assert any(json.loads(line).get("node") == BAD for line in lines)
