"""What changed since a plan: by hand, there and back, strangers' bytes."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ZOO, flat_layout, layout_of, mlp_layout, random_plan

from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.codec import encode_plan
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.plan_change import decode_change, encode_change

SEEDS = st.integers(0, 2**32 - 1)


def units(*kept: int) -> Plan:
    return Plan(mlp_layout(), {"fc1": np.array(kept)})


def without(plan: Plan, *weights: int) -> Plan:
    """Leave single weights out of fc1.weight."""
    mask = np.ones((4, 3), np.bool_)
    mask.flat[list(weights)] = False
    return Plan(plan.layout, plan.keep, {"fc1.weight": mask})


def test_units_by_hand() -> None:
    change = encode_change(units(0, 2), units(0, 3))

    # Units 2 and 3: 0011 and padding.
    assert change is not None
    assert change.hex() == "00" + "30"


def test_weights_by_hand() -> None:
    change = encode_change(without(units(0, 2), 1), without(units(0, 2), 1, 6))

    # fc1.weight is (2, 3): its element 3 went, 000100 00; others are as before.
    assert change is not None
    assert change[:1] == b"\1"
    assert zlib.decompress(change[1:]).hex() == "0110" + "00" * 3


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=8, deadline=None)
@given(one=SEEDS, other=SEEDS)
def test_units_there_and_back(name: str, one: int, other: int) -> None:
    before, after = (random_plan(layout_of(name), seed, False) for seed in (one, other))

    change = encode_change(before, after)

    assert change is not None
    assert encode_plan(decode_change(change, before)) == encode_plan(after)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 11)), st.lists(st.integers(0, 11)), st.integers(0, 3))
def test_weights_there_and_back(one: list[int], other: list[int], unit: int) -> None:
    before, after = without(units(unit), *one), without(units(unit), *other)

    change = encode_change(before, after)

    assert change is not None
    assert encode_plan(decode_change(change, before)) == encode_plan(after)


def test_units_and_weights_at_once_are_no_change() -> None:
    assert encode_change(without(units(0, 2), 1), units(0, 3)) is None
    assert encode_change(units(0, 3), without(units(0, 2), 1)) is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "unknown kind nothing"),
        (b"\2", "unknown kind 02"),
        (b"\0", "1 bytes of bits expected"),
        (b"\0\x30\0", "1 bytes too many"),
        (b"\0\xa0", "at least one unit must be kept"),
        (b"\1abc", "no zlib data"),
        (b"\1" + zlib.compress(b"\2"), "has no element flag"),
        (b"\1" + zlib.compress(b"\0\0\0\0\0"), "1 bytes too many"),
        (b"\1" + zlib.compress(bytes(10**6)), "of another length"),
        (b"\1" + zlib.compress(b"\0\0\0\0")[:-1], "of another length"),
    ],
)
def test_strangers_bytes(data: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        decode_change(data, units(0, 2))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=12))
def test_any_bytes_are_a_plan_or_a_wire_error(data: bytes) -> None:
    before = dense_plan(flat_layout())
    try:
        after = decode_change(data, before)
    except WireError:
        return
    assert after.layout is before.layout
