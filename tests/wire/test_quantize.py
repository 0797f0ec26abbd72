"""Eight bits: by hand, bounds, error feedback, strangers' bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ZOO, layout_of, mlp_layout, random_plan

from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.layout import Group, Layout, TensorSpec
from flwr_autoflip.graph.pack import split_values
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.wire.quantize import (
    dequantize,
    quantize,
    quantize_with_feedback,
    quantized_size,
)

SEEDS = st.integers(0, 2**32 - 1)


def one_layer() -> Plan:
    """Two units with a weight each, a running mean, and another tensor."""
    owner = np.arange(2)
    specs = (
        TensorSpec("w", (2,), "float32", True, (owner,)),
        TensorSpec("mean", (2,), "float32", False, (owner,)),
        TensorSpec("b", (1,), "float32", True, (None,)),
    )
    return dense_plan(Layout(specs, (Group("w", 0, 2),)))


def test_bytes_by_hand() -> None:
    values = np.float32([1.27, -0.634, 3.0, 4.0, 0.0])

    data = quantize(values, one_layer())

    # Scales 0.01 and 0, the mean as it is, then 127, -63 and 0.
    expected = np.float32([0.01, 0.0, 3.0, 4.0]).tobytes() + bytes([127, 256 - 63, 0])
    assert data.tobytes() == expected
    assert data.size == quantized_size(one_layer()) == 4 + 4 + 8 + 3
    back = dequantize(data, one_layer())
    np.testing.assert_allclose(back, [1.27, -0.63, 3.0, 4.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, masked=st.booleans(), exponent=st.integers(-40, 30))
def test_off_by_half_a_scale_at_most(
    name: str, seed: int, masked: bool, exponent: int
) -> None:
    plan = random_plan(layout_of(name), seed, masked)
    values = np.random.default_rng(seed).standard_normal(plan.num_values)
    values = np.ldexp(values, exponent).astype(np.float32)

    back = dequantize(quantize(values, plan), plan)

    start = 0
    for spec in plan.layout.tensors:
        part = slice(start, start := start + plan.count(spec.name))
        if part.start == part.stop:
            continue
        limit = np.abs(values[part]).max() / 127 * 0.501 if spec.trainable else 0
        assert np.abs(back[part] - values[part]).max() <= limit


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_quantised_values_stay(seed: int) -> None:
    plan = random_plan(layout_of("conv_flat"), seed, False)
    values = np.random.default_rng(seed).standard_normal(plan.num_values)
    once = dequantize(quantize(values, plan), plan)

    np.testing.assert_allclose(
        dequantize(quantize(once, plan), plan), once, rtol=1e-6, atol=0
    )


def test_feedback_preserves_sums() -> None:
    plan = random_plan(layout_of("conv_flat"), 0, False)
    generator = np.random.default_rng(0)
    meant = np.zeros(plan.num_values)
    with_feedback, without = np.zeros_like(meant), np.zeros_like(meant)
    residual = None
    for _ in range(50):
        update = (generator.random(plan.num_values) + 0.2).astype(np.float32)
        data, residual = quantize_with_feedback(update, residual, plan)
        meant += update
        with_feedback += dequantize(data, plan)
        without += dequantize(quantize(update, plan), plan)

    np.testing.assert_allclose(with_feedback + residual, meant, rtol=1e-5)
    error = np.abs(with_feedback - meant).mean()
    assert error < 0.2 * np.abs(without - meant).mean()


@pytest.mark.parametrize("name", ["conv_flat", "batch_norm"])
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, masked=st.booleans(), rounds=st.integers(1, 4))
def test_what_is_sent_is_never_longer_than_the_update(
    name: str, seed: int, masked: bool, rounds: int
) -> None:
    """Tensor by tensor, whatever earlier rounds left: clipped updates stay clipped."""
    plan = random_plan(layout_of(name), seed, masked)
    generator, residual = np.random.default_rng(seed), None
    for _ in range(rounds):
        shape, size = generator.uniform(1, 9), 10.0 ** generator.uniform(-9, 3)
        draws = generator.standard_normal(plan.num_values)
        update = (size * np.sign(draws) * np.abs(draws) ** shape).astype(np.float32)

        data, residual = quantize_with_feedback(update, residual, plan)

        sent = dequantize(data, plan)
        for (_, part), (_, meant) in zip(
            split_values(sent, plan), split_values(update, plan), strict=True
        ):
            length, allowed = (np.linalg.norm(v.astype(float)) for v in (part, meant))
            assert length <= allowed * (1 + 1e-6)


def test_what_the_bound_takes_away_comes_later() -> None:
    """Two values in turn, of which the second rounds away: its sum arrives."""
    plan = one_layer()
    update, residual = np.float32([1, 0.003, 0, 0, 0]), None
    total = np.zeros(5)
    for _ in range(40):
        data, residual = quantize_with_feedback(update, residual, plan)
        total += dequantize(data, plan)

    np.testing.assert_allclose(total + residual, 40 * update, rtol=1e-5)
    np.testing.assert_allclose(total[1], 0.12, atol=0.008)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_on_both_sides(bad: float) -> None:
    plan = one_layer()
    values = np.float32([1, 2, 3, 4, 5])
    data = quantize(values, plan)
    values[2] = bad
    with pytest.raises(WireError, match="must be finite"):
        quantize(values, plan)
    for place in (0, 8):  # a scale, a buffer
        broken = data.copy()
        broken[place : place + 4] = np.float32([bad]).view(np.uint8)
        with pytest.raises(WireError, match="NaN or infinite"):
            dequantize(broken, plan)


def test_a_negative_or_huge_scale_is_refused() -> None:
    plan = dense_plan(mlp_layout())
    data = quantize(np.ones(plan.num_values), plan)
    for scale in (-1.0, 3e38):
        data[:4] = np.float32([scale]).view(np.uint8)
        with pytest.raises(WireError, match=r"NaN or infinite"):
            dequantize(data, plan)


def test_another_length_or_dtype_is_refused() -> None:
    data = quantize(np.ones(5, np.float32), one_layer())
    for wrong in (data[:-1], data.view(np.int8), data[None]):
        with pytest.raises(WireError, match="expected 19 bytes of 8-bit values"):
            dequantize(wrong, one_layer())
