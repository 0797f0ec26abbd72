"""Plans and layouts as literal bytes, there and back, and bytes from strangers."""

import json
import time
import tracemalloc
import zlib
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    ZOO,
    flat_layout,
    layout_of,
    masked_plan,
    mlp_layout,
    random_plan,
)

from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.codec import (
    MAX_AXIS,
    decode_layout,
    decode_plan,
    encode_layout,
    encode_plan,
    layout_digest,
    plan_digest,
)
from flwr_autoflip.graph.layout import Group, Layout, TensorSpec
from flwr_autoflip.graph.plan import Plan

SEEDS = st.integers(0, 2**32 - 1)
Body = dict[str, Any]


def assert_same_plan(one: Plan, other: Plan) -> None:
    """Compare what two plans keep, unit by unit and weight by weight."""
    assert layout_digest(one.layout) == layout_digest(other.layout)
    np.testing.assert_array_equal(one.alive, other.alive)
    assert set(one.small_mask) == set(other.small_mask)
    for spec in one.layout.tensors:
        np.testing.assert_array_equal(
            one.dense_mask(spec.name), other.dense_mask(spec.name), spec.name
        )


# --- Plans ---

UNITS = Plan(mlp_layout(), {"fc1": np.array([0, 2])})
TWO_GROUPS = Plan(flat_layout(), {"conv": np.array([1]), "fc1": np.array([0, 2])})


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        # Version 1, no element bitmaps; units 1010 and padding.
        (UNITS, "01 00 a0"),
        # Units 01 and 101.
        (TWO_GROUPS, "01 00 68"),
        # fc1.weight 101 011 -> 1010 1100; fc1.bias whole; fc2.weight of columns 0 and
        # 2: 10 01 -> 1001 0000; fc2.bias whole.
        (masked_plan(), "01 01 a0 01ac 00 0190 00"),
    ],
    ids=["units", "two groups", "single weights"],
)
def test_plan_bytes_by_hand(plan: Plan, expected: str) -> None:
    data = bytes.fromhex(expected)

    assert encode_plan(plan) == data
    assert_same_plan(decode_plan(data, plan.layout), plan)


def test_plan_digest_is_of_its_layout_and_its_bytes() -> None:
    digest = plan_digest(b"plan", mlp_layout())

    whole = bytes.fromhex("0aec9a442aef4298fa649c136fa54783") + b"plan"
    assert digest == blake2b(whole, digest_size=16).digest()
    assert plan_digest(b"plan", flat_layout()) != digest


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, masked=st.booleans())
def test_decoding_undoes_encoding(name: str, seed: int, masked: bool) -> None:
    plan = random_plan(layout_of(name), seed, masked)

    data = encode_plan(plan)
    again = decode_plan(data, layout_of(name))

    assert_same_plan(again, plan)
    assert encode_plan(again) == data


@pytest.mark.parametrize("masked", [False, True])
def test_truncated_and_surplus_plans_are_wire_errors(masked: bool) -> None:
    layout = layout_of("conv_flat")
    data = encode_plan(random_plan(layout, 1, masked))

    for length in range(len(data)):
        with pytest.raises(WireError, match="plan: "):
            decode_plan(data[:length], layout)
    with pytest.raises(WireError, match="1 bytes too many"):
        decode_plan(data + b"\0", layout)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=24), st.booleans())
def test_random_plan_bytes_are_read_or_a_wire_error(data: bytes, head: bool) -> None:
    try:
        plan = decode_plan(b"\1" * head + data, flat_layout())
    except WireError:
        return

    assert_same_plan(decode_plan(encode_plan(plan), flat_layout()), plan)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "got nothing and 0 bytes"),
        ("0200a0", r"expected version 1 .* got 02"),
        ("0102a0", "element flag must be 0 or 1, got 2"),
        ("010000", "group 'fc1': at least one unit must be kept"),
        ("0100", "1 bytes of bits expected, 0 came"),
        ("0100a1", "padding bits must be 0"),
        ("0101a002", "'fc1.weight' has no element flag"),
        ("0101a001ad", "padding bits must be 0"),
        ("0101a001ac00", "'fc2.weight' has no element flag"),
        # A plan has one form, so that its bytes name it.
        ("0101a000000000", "element bitmaps are said to follow; none does"),
        ("0101a001fc", "bitmap of 'fc1.weight' keeps all of it"),
    ],
)
def test_faulty_plan_says_what_is_wrong(data: str, message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode_plan(bytes.fromhex(data), mlp_layout())


# --- Layouts ---

MLP_JSON = (
    '{"tensors":['
    '["fc1.weight",[4,3],"float32",1,[[[0,4,1]],null],[1],1.0,0],'
    '["fc1.bias",[4],"float32",1,[[[0,4,1]]],[],0.0,0],'
    '["fc2.weight",[2,4],"float32",1,[null,[[0,4,1]]],[1],1.0,0],'
    '["fc2.bias",[2],"float32",1,[null],[],0.0,0]],'
    '"groups":[["fc1",0,4]]}'
)
"""Linear 3 -> 4 -> 2, written by hand: owners 0 1 2 3 are the run [0, 4, 1]."""


def changed(change: Callable[[Body], Any]) -> bytes:
    """Change the layout's JSON; give its bytes."""
    body: Body = json.loads(MLP_JSON)
    change(body)
    return zlib.compress(json.dumps(body).encode())


def test_layout_bytes_by_hand() -> None:
    assert zlib.decompress(encode_layout(mlp_layout())).decode() == MLP_JSON
    # hashlib.blake2b(MLP_JSON.encode(), digest_size=16).hexdigest()
    assert layout_digest(mlp_layout()).hex() == "0aec9a442aef4298fa649c136fa54783"


def test_runs_by_hand() -> None:
    owners = [-1, -1, 0, 0, 1, 1, 2, 5, 6, 0]
    spec = TensorSpec("w", (10,), "float32", True, (np.array(owners),))
    layout = Layout((spec,), (Group("w", 0, 7),))

    runs = json.loads(zlib.decompress(encode_layout(layout)))["tensors"][0][4]

    # Nobody twice; 0 and 1 twice each; 2 once; 5 and 6 once each; 0 once.
    assert runs == [[[-1, 1, 2], [0, 2, 2], [2, 1, 1], [5, 2, 1], [0, 1, 1]]]


@settings(deadline=None)
@given(st.lists(st.integers(-1, 8), min_size=1, max_size=40))
def test_any_owners_survive_the_bytes(owners: list[int]) -> None:
    spec = TensorSpec("w", (len(owners),), "int64", False, (np.array(owners),))
    layout = Layout((spec,), (Group("a", 0, 9),), 1)

    again = decode_layout(encode_layout(layout))

    np.testing.assert_array_equal(again.tensors[0].owners[0], owners)
    assert again.batch_axis == 1


def test_truncated_and_surplus_layouts_are_wire_errors() -> None:
    data = encode_layout(flat_layout())

    for length in range(len(data)):
        with pytest.raises(WireError):
            decode_layout(data[:length])
    with pytest.raises(WireError, match="followed by more"):
        decode_layout(data + b"\0")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_layout_bytes_are_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_layout(data)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["float32", "O", "f4,f4", "(2,)i4", "1000000000S"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(junk=JUNK, seed=SEEDS)
def test_any_field_replaced_by_junk_is_read_or_a_wire_error(
    junk: Any, seed: int
) -> None:
    generator = np.random.default_rng(seed)

    def replace(body: Body) -> None:
        holder: Any = {"root": body}
        key: Any = "root"
        while isinstance(holder[key], (list, dict)) and len(holder[key]):
            holder = holder[key]
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            key = keys[generator.integers(len(keys))]
            if generator.random() < 0.2:
                break
        holder[key] = junk

    try:
        layout = decode_layout(changed(replace))
    except WireError:
        return
    for spec in layout.tensors:
        assert len(spec.owners) == len(spec.shape)
        assert all(o is None or o.dtype == np.int64 for o in spec.owners)


def wide(count: int) -> Callable[[Body], Any]:
    """As many tensors, each of one axis with as many owners as an axis may have."""
    row = [[MAX_AXIS], "float32", 1, [[[-1, 1, MAX_AXIS]]], [], 1.0, 0]
    return lambda body: body["tensors"].extend([f"w{i}", *row] for i in range(count))


def row(*path: Any) -> Callable[[Body], Any]:
    """Put the last of these at the place of the first tensor that the others say."""

    def change(body: Body) -> None:
        holder = body["tensors"][0]
        for key in path[:-2]:
            holder = holder[key]
        holder[path[-2]] = path[-1]

    return change


FAULTS: dict[str, Callable[[Body], Any]] = {
    "too many owners": wide(1000),
    "too many units": lambda body: body["groups"].append(["g", 4, 10**18]),
    "half a unit": lambda body: body["groups"].append(["g", 4, 1.5]),
    "too many values": row(1, [MAX_AXIS] * 4),
    "too many axes": row(1, [1] * 40),
    "more axes than owners": row(1, [4, 3, 1]),
    "a negative axis": row(1, [-4, 3]),
    "an axis too long": row(1, [1 << 29, 3]),
    "a run too short": row(4, 0, [[0, 3, 1]]),
    "a run of less than nothing": row(4, 0, [[0, 5, 1], [0, -1, 1]]),
    "half an owner": row(4, 0, [[0.5, 3, 1], [0, 1, 1]]),
    "an owner too high": row(4, 0, [[1, 4, 1]]),
    "an owner too low": row(4, 0, [[-2, 4, 1]]),
    "an input axis too high": row(5, [2]),
    "an input axis too low": row(5, [-1]),
    "too many MACs": row(6, 1e308),
    "MACs that are no number": row(6, float("nan")),
    **{f"dtype {d}": row(2, d) for d in (None, "O", "f4,f4", "S5", "float31")},
    "half a flag": row(3, 0.5),
    "a name that is none": row(0, 7),
    "a name for a terminal": row(0, "\x1b[31m"),
    "a name that no file holds": row(0, "\ud800"),
    "a tensor that comes twice": lambda body: body["tensors"].append(
        body["tensors"][3]
    ),
    "a group that comes twice": lambda body: body.update(
        groups=[["fc1", 0, 2], ["fc1", 2, 2]]
    ),
    **{
        f"batch axis {axis}": lambda body, axis=axis: body.update(batch_axis=axis)
        for axis in (-1, 99, 0.5, "0", None)
    },
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_layout_is_checked_before_it_is_made(fault: str) -> None:
    data = changed(FAULTS[fault])

    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode_layout(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2e6


@pytest.mark.parametrize("text", [b" " * ((1 << 22) + 1), b"[" * 200_000])
def test_json_too_long_or_too_deep_is_a_wire_error(text: bytes) -> None:
    with pytest.raises(WireError):
        decode_layout(zlib.compress(text))


def test_as_large_as_a_layout_may_be_takes_little_time() -> None:
    data = changed(wide(3))

    start = time.process_time()
    found = decode_layout(data)

    assert len(found.tensors) == 4 + 3
    assert time.process_time() - start < 5
    with pytest.raises(WireError, match="indices; up to"):
        decode_layout(data, room=1e6)


def test_another_model_is_refused_before_its_tensors_are_made() -> None:
    seen: list[Any] = []

    def check(tensors: Any) -> None:
        seen.extend(tensors)
        raise WireError("another model")

    with pytest.raises(WireError, match="another model"):
        decode_layout(changed(row(4, 0, "no owners at all")), check=check)

    assert seen[0] == ("fc1.weight", (4, 3), "float32", "")
