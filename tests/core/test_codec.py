"""Plans as literal bytes, values there and back, and bytes from strangers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import (
    ZOO,
    flat_layout,
    layout_of,
    mlp_layout,
    random_arrays,
    random_plan,
)

from flwr_autoflip.core.codec import (
    check_values,
    decode_plan,
    encode_plan,
    expand,
    from_half,
    pack,
    pack_small,
    plan_digest,
    to_half,
    unpack_small,
)
from flwr_autoflip.core.errors import WireError
from flwr_autoflip.core.plan import Plan, dense_plan

SEEDS = st.integers(0, 2**32 - 1)
DIGEST = "0aec9a442aef4298fa649c136fa54783"
"""blake2b, 16 bytes, of the JSON that test_layout.py writes out."""


def masked_plan() -> Plan:
    """Neurons 0 and 2 of 4, without some single weights."""
    first = np.ones((4, 3), np.bool_)
    first[0, 1] = first[2, 0] = False
    second = np.ones((2, 4), np.bool_)
    second[0, 2] = second[1, 0] = False
    return Plan(
        mlp_layout(),
        {"fc1": np.array([0, 2])},
        {"fc1.weight": first, "fc2.weight": second},
    )


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


# --- Plan <-> bytes ---


def test_plan_bytes_by_hand() -> None:
    plan = Plan(mlp_layout(), {"fc1": np.array([0, 2])})

    # Version 1, digest, no element bitmaps. Two of four: 010. Units 1010 are number 4
    # after 0011, 0101, 0110, 1001: 100. Together 0101 00, padded with 00.
    assert encode_plan(plan).hex() == "01" + DIGEST + "00" + "50"


def test_plan_bytes_of_two_groups_by_hand() -> None:
    layout = flat_layout()
    plan = Plan(layout, {"conv": np.array([1]), "fc1": np.array([0, 2])})

    # Units 01: one of two 01, number 0 of two 0. Units 101: two of three 10, number 1
    # of three 01. Together 0101 001, padded with 0.
    assert encode_plan(plan).hex() == "01" + layout.digest.hex() + "00" + "52"


def test_plan_bytes_with_single_weights_by_hand() -> None:
    # Flag 1, units 50; then tensor by tensor:
    # fc1.weight 101 011 -> 1010 1100; fc1.bias whole;
    # fc2.weight of columns 0 and 2: 10 01 -> 1001 0000; fc2.bias whole.
    expected = "01" + DIGEST + "01" + "50" + "01ac" + "00" + "0190" + "00"

    assert encode_plan(masked_plan()).hex() == expected
    assert_same_plan(decode_plan(bytes.fromhex(expected), mlp_layout()), masked_plan())


def test_plan_digest_is_of_its_bytes() -> None:
    # hashlib.blake2b(b"plan", digest_size=16).hexdigest()
    assert plan_digest(b"plan").hex() == "74b3e576f22d156dca49123c1465e815"


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
@given(st.binary(max_size=64))
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
        plan = decode_plan(b"\1" + layout.digest + data, layout)
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
        decode_plan(bytes.fromhex("01" + DIGEST + tail), mlp_layout())


def test_other_version_is_a_wire_error() -> None:
    with pytest.raises(WireError, match=r"expected version 1 .* got 02"):
        decode_plan(bytes.fromhex("02" + DIGEST + "0050"), mlp_layout())


def test_plan_of_another_model_is_a_wire_error() -> None:
    with pytest.raises(WireError, match="another model"):
        decode_plan(encode_plan(dense_plan(flat_layout())), mlp_layout())


# --- Arrays <-> values ---


def test_pack_by_hand() -> None:
    arrays = {
        "fc1.weight": np.float32([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]),
        "fc1.bias": np.float32([13, 14, 15, 16]),
        "fc2.weight": np.float32([[17, 18, 19, 20], [21, 22, 23, 24]]),
        "fc2.bias": np.float32([25, 26]),
    }

    units = pack(arrays, masked_plan().without_mask())
    weights = pack(arrays, masked_plan())

    np.testing.assert_array_equal(
        units, [1, 2, 3, 7, 8, 9, 13, 15, 17, 19, 21, 23, 25, 26]
    )
    # Less (0, 1) = 2 and (2, 0) = 7 of fc1, (0, 2) = 19 and (1, 0) = 21 of fc2.
    np.testing.assert_array_equal(weights, [1, 3, 8, 9, 13, 15, 17, 23, 25, 26])
    assert units.dtype == np.float32


def test_unpack_by_hand() -> None:
    values = np.float32([1, 3, 8, 9, 13, 15, 17, 23, 25, 26])

    small = unpack_small(values, masked_plan())

    np.testing.assert_array_equal(small["fc1.weight"], [[1, 0, 3], [0, 8, 9]])
    np.testing.assert_array_equal(small["fc1.bias"], [13, 15])
    np.testing.assert_array_equal(small["fc2.weight"], [[17, 0], [0, 23]])
    np.testing.assert_array_equal(small["fc2.bias"], [25, 26])


def bits(array: np.ndarray) -> bytes:
    """Give an array's bytes: NaN and -0 count as what they are."""
    return array.tobytes()


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, masked=st.booleans())
def test_expand_undoes_pack_on_kept_coordinates(
    name: str, seed: int, masked: bool
) -> None:
    layout = layout_of(name)
    plan = random_plan(layout, seed, masked)
    arrays, base = random_arrays(layout, 1), random_arrays(layout, 2)
    for array in base.values():
        if array.dtype.kind == "f":
            array.ravel()[::3] = np.nan
            array.ravel()[1::3] = -0.0
    before = {n: bits(a) for n, a in base.items()}

    full = expand(base, pack(arrays, plan), plan)

    assert list(full) == list(base)
    for spec in layout.tensors:
        mask = plan.dense_mask(spec.name)
        expected = base[spec.name].copy()
        expected[mask] = arrays[spec.name][mask]
        assert full[spec.name].dtype == np.dtype(spec.dtype)
        assert bits(full[spec.name]) == bits(expected), spec.name
        assert bits(base[spec.name]) == before[spec.name]


@pytest.mark.parametrize("name", ZOO)
def test_keeping_all_is_the_identity(name: str) -> None:
    layout = layout_of(name)
    arrays, base = random_arrays(layout, 1), random_arrays(layout, 2)
    plan = dense_plan(layout)

    values = pack(arrays, plan)
    full = expand(base, values, plan)

    assert values.size == sum(a.size for a in arrays.values())
    for tensor, array in arrays.items():
        assert bits(full[tensor]) == bits(array), tensor


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=6, deadline=None)
@given(seed=SEEDS, masked=st.booleans())
def test_small_arrays_survive_their_values(name: str, seed: int, masked: bool) -> None:
    layout = layout_of(name)
    plan = random_plan(layout, seed, masked)
    values = np.arange(1, plan.num_values + 1, dtype=np.float32)

    small = unpack_small(values, plan)

    assert {n: a.shape for n, a in small.items()} == {
        t.name: plan.small_shape(t.name) for t in layout.tensors
    }
    np.testing.assert_array_equal(pack_small(small, plan), values)


def test_integers_are_rounded_not_cut() -> None:
    plan = dense_plan(flat_layout())
    values = np.zeros(plan.num_values, np.float32)
    values[10] = 2.7  # after conv 4, norm 2 + 2 and running_mean 2

    small = unpack_small(values, plan)

    np.testing.assert_array_equal(small["norm.num_batches_tracked"], 3)
    assert small["norm.num_batches_tracked"].dtype == np.int64


def test_float16_values_are_clipped_to_its_range() -> None:
    plan = dense_plan(mlp_layout())
    arrays = random_arrays(mlp_layout())
    arrays["fc1.bias"] = np.float32([1e6, -1e6, 0.1, 65504])

    values = pack(arrays, plan, "float16")

    assert values.dtype == np.float16
    np.testing.assert_array_equal(
        values[12:16], np.float16([65504, -65504, 0.1, 65504])
    )


def test_float16_keeps_nan_for_the_check_to_find() -> None:
    plan = dense_plan(mlp_layout())
    arrays = random_arrays(mlp_layout())
    arrays["fc1.bias"] = np.float32([np.nan, np.inf, 0, 0])

    values = pack(arrays, plan, "float16")

    with pytest.raises(WireError, match="2 of 26 are NaN or infinite"):
        check_values(values, plan)


def test_unknown_value_dtype_is_a_wire_error() -> None:
    with pytest.raises(WireError, match="value dtype must be one of"):
        pack(random_arrays(mlp_layout()), dense_plan(mlp_layout()), "int8")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(25, np.float32), "keeps 26 values"),
        (np.zeros((26, 1), np.float32), r"\(26, 1\)"),
        (np.zeros(26, np.float64), "dtype float64"),
        (np.zeros(26, np.int32), "dtype int32"),
        (np.full(26, np.nan, np.float32), "26 of 26"),
        (np.full(26, -np.inf, np.float16), "26 of 26"),
    ],
)
def test_values_that_do_not_fit_are_wire_errors(
    values: np.ndarray, message: str
) -> None:
    plan = dense_plan(mlp_layout())

    with pytest.raises(WireError, match=message):
        expand(random_arrays(mlp_layout()), values, plan)


# --- Sixteen bits ---


@settings(deadline=None)
@given(
    hnp.arrays(np.float64, 8, elements=st.floats(-1, 1, width=32)),
    st.integers(-100, 100),
)
def test_half_is_exact_to_one_part_in_2000(fractions: np.ndarray, power: int) -> None:
    fractions[0] = 1.0
    values = np.ldexp(fractions, power)

    half, scale = to_half(values)
    back = half.astype(np.float64) / scale

    # Normal float16 numbers reach 2^-14; the largest value lies at 2^13 or above.
    large = np.abs(fractions) >= 2.0**-27
    np.testing.assert_allclose(back[large], values[large], rtol=1 / 2000)
    # Below them float16 has steps of 2^-24: half a step over a scale of 2^13.
    small, step = ~large, np.ldexp(1.0, power - 38)
    np.testing.assert_allclose(back[small], values[small], rtol=0, atol=step)
    assert half.dtype == np.float16
    assert np.isfinite(half).all()


def test_half_scales_by_a_power_of_two_by_hand() -> None:
    half, scale = to_half(np.float32([3.0, -1.5, 0.0]))

    # 3 = .75 * 2^2, so the scale is 2^(14 - 2) and 3 becomes 12288.
    assert scale == 2.0**12
    np.testing.assert_array_equal(half, np.float16([12288, -6144, 0]))
    np.testing.assert_array_equal(from_half(half, scale), [3.0, -1.5, 0.0])


def test_half_of_zeros_and_of_nothing() -> None:
    for values in (np.zeros(3, np.float32), np.zeros(0, np.float32)):
        half, scale = to_half(values)

        assert scale == 1.0
        np.testing.assert_array_equal(half, values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_half_of_a_diverged_report_is_a_wire_error(bad: float) -> None:
    with pytest.raises(WireError, match="diverged"):
        to_half(np.array([1.0, bad]))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scale_that_cannot_be_is_a_wire_error(scale: float) -> None:
    with pytest.raises(WireError, match="positive and finite"):
        from_half(np.float16([1.0]), scale)
