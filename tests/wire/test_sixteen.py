"""Sixteen bits: by hand, exact buffers, what does not fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ZOO, layout_of, random_plan

from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.layout import Group, Layout, TensorSpec
from flwr_autoflip.graph.pack import split_values
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.wire.sixteen import from_sixteen, sixteen_size, to_sixteen


def one_layer() -> Plan:
    """Two weights, a running mean of either, and a counter."""
    owner = np.arange(2)
    specs = (
        TensorSpec("w", (2,), "float32", True, (owner,)),
        TensorSpec("mean", (2,), "float32", False, (owner,)),
        TensorSpec("seen", (), "int64", False, ()),
    )
    return dense_plan(Layout(specs, (Group("w", 0, 2),)))


def test_bytes_by_hand() -> None:
    values = np.float32([1.5, -2.0, 1e6, 0.1, 16_777_216])

    data = to_sixteen(values, one_layer())

    expected = np.float32([1e6, 0.1, 2**24]).tobytes() + bytes.fromhex("003e00c0")
    assert data.tobytes() == expected
    assert data.size == sixteen_size(one_layer()) == 16
    np.testing.assert_array_equal(from_sixteen(data, one_layer()), values)


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), masked=st.booleans())
def test_buffers_are_exact_and_weights_to_a_part_in_2000(
    name: str, seed: int, masked: bool
) -> None:
    plan = random_plan(layout_of(name), seed, masked)
    values = np.random.default_rng(seed).standard_normal(plan.num_values)
    values = (values * 2000).astype(np.float32)

    back = from_sixteen(to_sixteen(values, plan), plan)

    pairs = zip(split_values(values, plan), split_values(back, plan), strict=True)
    for (spec, meant), (_, came) in pairs:
        tolerance = 2**-11 if spec.trainable else 0
        np.testing.assert_allclose(came, meant, rtol=tolerance, atol=1e-7 * tolerance)
    np.testing.assert_array_equal(to_sixteen(back, plan), to_sixteen(values, plan))


@pytest.mark.parametrize("bad", [65520.0, -1e9, np.nan, np.inf])
def test_a_weight_that_does_not_fit_is_named(bad: float) -> None:
    values = np.float32([1, bad, 1, 1, 1])

    with pytest.raises(WireError, match=r"'w' has a weight .* value_dtype='float32'"):
        to_sixteen(values, one_layer())


def test_another_length_dtype_or_value_is_refused() -> None:
    data = to_sixteen(np.ones(5, np.float32), one_layer())

    for wrong in (data[:-2], data.view(np.float16), data[None]):
        with pytest.raises(WireError, match="expected 16 bytes of 16-bit values"):
            from_sixteen(wrong, one_layer())
    for place, number in ((0, np.float32(np.nan)), (12, np.float16(np.inf))):
        broken = data.copy()
        broken[place : place + number.nbytes] = np.array([number]).view(np.uint8)
        with pytest.raises(WireError, match="NaN or infinite"):
            from_sixteen(broken, one_layer())


def test_toward_zero_by_hand() -> None:
    third = np.float32(1 / 3)  # float16's neighbours: 0.33325 and 0.3335
    values = np.float32([third, -2 * third, 1, 1, 1])

    nearest = from_sixteen(to_sixteen(values, one_layer()), one_layer())
    shorter = from_sixteen(to_sixteen(values, one_layer(), True), one_layer())

    assert nearest[:2].tolist() == [0.333251953125, -0.66650390625]
    assert shorter[:2].tolist() == [0.333251953125, -0.66650390625]
    values[:2] = 0.6668, -0.6668  # nearer to 0.66699 than to 0.6665
    shorter = from_sixteen(to_sixteen(values, one_layer(), True), one_layer())
    assert shorter[:2].tolist() == [0.66650390625, -0.66650390625]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-8, 4))
def test_toward_zero_no_weight_gets_larger(seed: int, exponent: int) -> None:
    plan = random_plan(layout_of("conv_flat"), seed)
    values = np.random.default_rng(seed).standard_normal(plan.num_values)
    values = (values * 10.0**exponent).astype(np.float32)

    back = from_sixteen(to_sixteen(values, plan, toward_zero=True), plan)

    assert (np.abs(back) <= np.abs(values)).all()
    np.testing.assert_allclose(back, values, rtol=2**-10, atol=2**-24)
