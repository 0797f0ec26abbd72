"""Sixteen bits with a scale: by hand, exactness, what diverged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flwr_autoflip.errors import WireError
from flwr_autoflip.wire.half import from_half, to_half


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
