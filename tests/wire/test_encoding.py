"""Values as they travel: by hand, there and back, bounds, error feedback, strangers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import ZOO, layout_of, mlp_layout, random_plan

from flwr_autoflip.errors import AutoFlipError, WireError
from flwr_autoflip.graph.layout import Group, Layout, TensorSpec
from flwr_autoflip.graph.pack import split_values
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.wire.encoding import DTYPES, FLOAT32, Encoding, from_half, to_half

EIGHT, SIXTEEN = Encoding("int8"), Encoding("float16")
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


def values_of(plan: Plan, seed: int = 0, exponent: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(plan.num_values)
    return np.ldexp(values, exponent).astype(np.float32)


def test_bytes_by_hand() -> None:
    values = np.float32([1.27, -0.634, 3.0, 4.0, 0.0])

    eight = EIGHT.encode(values, one_layer())
    sixteen = SIXTEEN.encode(values, one_layer())

    assert FLOAT32.encode(values, one_layer()) is values
    # Scales 0.01 and 0, the mean as it is, then 127, -63 and 0.
    expected = np.float32([0.01, 0.0, 3.0, 4.0]).tobytes() + bytes([127, 256 - 63, 0])
    assert eight.tobytes() == expected
    back = EIGHT.decode(eight, one_layer())
    np.testing.assert_allclose(back, [1.27, -0.63, 3.0, 4.0, 0.0], rtol=1e-6)
    expected = np.float32([3, 4]).tobytes() + np.float16([1.27, -0.634, 0]).tobytes()
    assert sixteen.tobytes() == expected
    back = SIXTEEN.decode(sixteen, one_layer())
    np.testing.assert_array_equal(back, np.float32([*np.float16(values[:2]), 3, 4, 0]))


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, masked=st.booleans(), exponent=st.integers(-14, 12))
def test_how_far_off_values_are(
    name: str, seed: int, masked: bool, exponent: int
) -> None:
    plan = random_plan(layout_of(name), seed, masked)
    values = values_of(plan, seed, exponent)

    for encoding in map(Encoding, DTYPES):
        back = encoding.decode(encoding.encode(values, plan), plan)

        assert back.dtype == np.float32
        pairs = split_values(values, plan), split_values(back, plan)
        for (spec, meant), (_, came) in zip(*pairs, strict=True):
            largest = np.abs(meant).max(initial=0)
            limit = {
                "float32": 0.0,
                "float16": np.maximum(np.abs(meant) * 2**-11, 2**-25),
                "int8": largest / 127 * 0.501,
            }[encoding.dtype]
            assert (np.abs(came - meant) <= limit * spec.trainable).all()
        again = encoding.decode(encoding.encode(back, plan), plan)
        np.testing.assert_allclose(again, back, rtol=1e-6, atol=0)


def test_buffers_of_any_size_stay_exact() -> None:
    values = np.float32([1, 2, 1e6, 16_777_215, 3])

    for encoding in (SIXTEEN, EIGHT):
        back = encoding.decode(encoding.encode(values, one_layer()), one_layer())
        np.testing.assert_array_equal(back[2:4], values[2:4])


@pytest.mark.parametrize("name", ["conv_flat", "batch_norm"])
@pytest.mark.parametrize("encoding", [EIGHT, SIXTEEN], ids=str)
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, masked=st.booleans(), rounds=st.integers(1, 4))
def test_what_is_sent_is_never_longer_than_the_update(
    encoding: Encoding, name: str, seed: int, masked: bool, rounds: int
) -> None:
    """Tensor by tensor, whatever earlier rounds left: clipped updates stay clipped."""
    plan = random_plan(layout_of(name), seed, masked)
    generator, residual = np.random.default_rng(seed), None
    for _ in range(rounds):
        shape, size = generator.uniform(1, 5), 10.0 ** generator.uniform(-9, 1)
        draws = generator.standard_normal(plan.num_values)
        update = (size * np.sign(draws) * np.abs(draws) ** shape).astype(np.float32)

        data, residual = encoding.encode_update(update, residual, plan)

        pairs = split_values(encoding.decode(data, plan), plan)
        for (_, sent), (_, meant) in zip(
            pairs, split_values(update, plan), strict=True
        ):
            length, allowed = (np.linalg.norm(v.astype(float)) for v in (sent, meant))
            assert length <= allowed * (1 + 1e-6)
            assert encoding == EIGHT or (np.abs(sent) <= np.abs(meant)).all()


def test_feedback_preserves_sums() -> None:
    plan = random_plan(layout_of("conv_flat"), 0, False)
    generator = np.random.default_rng(0)
    meant = np.zeros(plan.num_values)
    with_feedback, without = np.zeros_like(meant), np.zeros_like(meant)
    residual = None
    for _ in range(50):
        update = (generator.random(plan.num_values) + 0.2).astype(np.float32)
        data, residual = EIGHT.encode_update(update, residual, plan)
        meant += update
        with_feedback += EIGHT.decode(data, plan)
        without += EIGHT.decode(EIGHT.encode(update, plan), plan)

    np.testing.assert_allclose(with_feedback + residual, meant, rtol=1e-5)
    error = np.abs(with_feedback - meant).mean()
    assert error < 0.2 * np.abs(without - meant).mean()


# --- What is refused ---


def test_a_wrong_dtype_is_refused() -> None:
    with pytest.raises(AutoFlipError, match=r"value_dtype must be one of .* 'int4'"):
        Encoding("int4")


@pytest.mark.parametrize("encoding", map(Encoding, DTYPES), ids=str)
def test_other_lengths_and_dtypes_are_refused(encoding: Encoding) -> None:
    plan = random_plan(layout_of("conv_flat"), 0, False)
    data = encoding.encode(values_of(plan), plan)
    others = [Encoding(d).encode(values_of(plan), plan) for d in DTYPES]
    others = [other for other in others if other.nbytes != data.nbytes]

    for wrong in (data[:-1], data.astype(np.int8), data[None], *others):
        with pytest.raises(WireError, match="values: "):
            encoding.decode(wrong, plan)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_on_both_sides(bad: float) -> None:
    plan = one_layer()
    data = EIGHT.encode(np.float32([1, 2, 3, 4, 5]), plan)
    for place in (0, 8):  # a scale, a buffer
        broken = data.copy()
        broken[place : place + 4] = np.float32([bad]).view(np.uint8)
        with pytest.raises(WireError, match="NaN or infinite"):
            EIGHT.decode(broken, plan)
    values = np.float32([bad, 2, 3, 4, 5])
    with pytest.raises(WireError, match="must be finite"):
        EIGHT.encode(values, plan)
    with pytest.raises(WireError, match=r"'w' has a weight .* did training diverge"):
        SIXTEEN.encode(values, plan)


def test_weights_beyond_16_bits_are_named() -> None:
    SIXTEEN.encode(np.float32([65504, 2, 3, 4, 5]), one_layer())
    with pytest.raises(WireError, match=r"65504; .* value_dtype='float32'"):
        SIXTEEN.encode(np.float32([65520, 2, 3, 4, 5]), one_layer())


def test_a_negative_or_huge_scale_is_refused() -> None:
    plan = dense_plan(mlp_layout())
    data = EIGHT.encode(np.ones(plan.num_values, np.float32), plan)
    for scale in (-1.0, 3e38):
        data[:4] = np.float32([scale]).view(np.uint8)
        with pytest.raises(WireError, match=r"NaN or infinite"):
            EIGHT.decode(data, plan)


# --- Reports ---


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


def test_half_scales_by_a_power_of_two_by_hand() -> None:
    half, scale = to_half(np.float32([3.0, -1.5, 0.0]))

    # 3 = .75 * 2^2, so the scale is 2^(14 - 2) and 3 becomes 12288.
    assert scale == 2.0**12
    np.testing.assert_array_equal(half, np.float16([12288, -6144, 0]))
    np.testing.assert_array_equal(from_half(half, scale), [3.0, -1.5, 0.0])
    for nothing in (np.zeros(3, np.float32), np.zeros(0, np.float32)):
        assert to_half(nothing)[1] == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_reports_that_diverged_and_scales_that_cannot_be(bad: float) -> None:
    with pytest.raises(WireError, match="positive and finite"):
        from_half(np.float16([1.0]), bad)
    if not np.isfinite(bad):
        with pytest.raises(WireError, match="diverged"):
            to_half(np.array([1.0, bad]))
