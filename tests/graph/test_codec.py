"""Plans as literal bytes, there and back, and bytes from strangers."""

from hashlib import blake2b
from math import comb, log2

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
from flwr_autoflip.graph.codec import decode_plan, encode_plan, plan_digest
from flwr_autoflip.graph.layout import Group, Layout, TensorSpec
from flwr_autoflip.graph.plan import Plan

SEEDS = st.integers(0, 2**32 - 1)


def assert_same_plan(one: Plan, other: Plan) -> None:
    """Compare what two plans keep, unit by unit and weight by weight."""
    assert one.layout.digest == other.layout.digest
    assert set(one.keep) == set(other.keep)
    for name, kept in one.keep.items():
        np.testing.assert_array_equal(kept, other.keep[name])
    assert set(one.small_mask) == set(other.small_mask)
    for spec in one.layout.tensors:
        np.testing.assert_array_equal(
            one.dense_mask(spec.name), other.dense_mask(spec.name), spec.name
        )


def test_plan_bytes_by_hand() -> None:
    plan = Plan(mlp_layout(), {"fc1": np.array([0, 2])})

    # Version 1, no element bitmaps. Two of four: 010. Units 1010 are number 4
    # after 0011, 0101, 0110, 1001: 100. Together 0101 00, padded with 00.
    assert encode_plan(plan).hex() == "01" + "00" + "50"


def test_plan_bytes_of_two_groups_by_hand() -> None:
    layout = flat_layout()
    plan = Plan(layout, {"conv": np.array([1]), "fc1": np.array([0, 2])})

    # Units 01: one of two 01, number 0 of two 0. Units 101: two of three 10, number 1
    # of three 01. Together 0101 001, padded with 0.
    assert encode_plan(plan).hex() == "01" + "00" + "52"


def test_plan_bytes_with_single_weights_by_hand() -> None:
    # Flag 1, units 50; then tensor by tensor:
    # fc1.weight 101 011 -> 1010 1100; fc1.bias whole;
    # fc2.weight of columns 0 and 2: 10 01 -> 1001 0000; fc2.bias whole.
    expected = "01" + "01" + "50" + "01ac" + "00" + "0190" + "00"

    assert encode_plan(masked_plan()).hex() == expected
    assert_same_plan(decode_plan(bytes.fromhex(expected), mlp_layout()), masked_plan())


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_plans_of_units_are_within_three_percent_of_the_bound(share: float) -> None:
    sizes = {"conv1": 64, "conv2": 128, "fc1": 2048}  # the paper's FEMNIST-CNN
    kept = {name: max(1, round(share * size)) for name, size in sizes.items()}
    specs, groups, first = [], [], 0
    for name, size in sizes.items():
        owner = np.arange(first, first := first + size)
        specs.append(TensorSpec(name, (size,), "float32", True, (owner,)))
        groups.append(Group(name, first - size, size))
    rng = np.random.default_rng(0)
    keep = {n: np.sort(rng.permutation(sizes[n])[: kept[n]]) for n in sizes}

    data = encode_plan(Plan(Layout(tuple(specs), tuple(groups)), keep))

    # How many stay in each group, and which of all subsets of that size.
    bits = sum(log2((n + 1) * comb(n, kept[name])) for name, n in sizes.items())
    assert bits / 8 <= len(data) <= 1.03 * bits / 8


def test_single_weights_take_a_bit_each() -> None:
    plan = random_plan(layout_of("conv_flat"), 3, masked=True)
    whole = sum(plan.small_shape(t.name) != () for t in plan.layout.tensors)
    elements = plan.without_mask().num_parameters

    data = encode_plan(plan)

    units = len(encode_plan(plan.without_mask()))
    assert plan.num_parameters < elements
    assert 8 * (len(data) - units) <= elements + 16 * whole  # a flag, padding a tensor


def test_plan_digest_is_of_its_layout_and_its_bytes() -> None:
    data = b"plan"

    digest = plan_digest(data, mlp_layout())

    whole = bytes.fromhex("0aec9a442aef4298fa649c136fa54783") + data
    assert digest == blake2b(whole, digest_size=16).digest()
    assert plan_digest(data, flat_layout()) != digest


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


@settings(deadline=None)
@given(st.binary(max_size=64).filter(lambda data: data[:1] != b"\1"))
def test_random_bytes_are_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_plan(data, mlp_layout())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=24))
def test_random_bytes_after_a_good_header_are_read_or_a_wire_error(
    data: bytes,
) -> None:
    layout = flat_layout()

    try:
        plan = decode_plan(b"\1" + data, layout)
    except WireError:
        return

    assert_same_plan(decode_plan(encode_plan(plan), layout), plan)


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("0250", "element flag must be 0 or 1, got 2"),
        ("0000", "at least one unit must stay"),
        ("00a0", "group 'fc1': a subset of 4 units cannot have 5 members"),
        ("0051", "padding bits must be 0"),
        ("015002", "'fc1.weight' has no element flag"),
        ("015001ad", "padding bits must be 0"),
        ("015001ac00", "'fc2.weight' has no element flag"),
    ],
)
def test_faulty_plan_says_what_is_wrong(tail: str, message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode_plan(bytes.fromhex("01" + tail), mlp_layout())


def test_other_version_is_a_wire_error() -> None:
    with pytest.raises(WireError, match=r"expected version 1 .* got 02"):
        decode_plan(bytes.fromhex("020050"), mlp_layout())
