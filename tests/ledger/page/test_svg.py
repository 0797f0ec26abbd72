"""Scales, ticks and numbers."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_autoflip.ledger.page.svg import (
    amount,
    linear,
    log_ticks,
    logarithmic,
    percent,
    tag,
    ticks,
)


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e9), st.booleans())
def test_ticks_cover_a_range_in_equal_steps(
    low: float, span: float, whole: bool
) -> None:
    found = ticks(low, low + span, whole=whole)

    assert found[0] <= low + 1e-6 * span
    assert found[-1] >= low + span - 1e-6 * span
    assert 2 <= len(found) <= 9
    if whole:
        assert all(value == round(value) for value in found)


def test_few_rounds_have_whole_ticks() -> None:
    assert ticks(0, 3, whole=True) == [0, 1, 2, 3]
    assert ticks(0, 12, whole=True) == [0, 3, 6, 9, 12]


def test_logarithmic_ticks_are_inside() -> None:
    assert log_ticks(3, 1200) == [10, 100, 1000] or log_ticks(3, 1200)[0] >= 3
    assert all(3 <= value <= 1200 for value in log_ticks(3, 1200))
    assert log_ticks(1, 10) == [1, 2, 5, 10]


def test_scales_map_ends_to_ends() -> None:
    for scale in (linear(2, 32, 10, 20), logarithmic(2, 32, 10, 20)):
        assert scale(2) == pytest.approx(10)
        assert scale(32) == pytest.approx(20)
    assert logarithmic(2, 32, 10, 20)(8) == pytest.approx(15)
    assert linear(3, 3, 10, 20)(3) == 10  # a single value has a place, too


@settings(max_examples=100, deadline=None)
@given(st.floats(1, 1e15))
def test_amounts_are_within_half_a_percent(value: float) -> None:
    number, _, prefix = amount(value).partition(" ")

    factor = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}[prefix]
    assert math.isclose(float(number) * factor, value, rel_tol=0.005, abs_tol=0.005)


def test_amounts_may_be_negative() -> None:
    assert amount(-1_250_000, "B") == "-1.25 MB"
    assert percent(-0.25) == "-25 %"


def test_attributes_and_texts_cannot_break_out() -> None:
    assert tag("g", class_='x" onload="y') == '<g class="x&quot; onload=&quot;y"/>'
