"""Amounts as people read them."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_autoflip.ledger.amounts import amount, percent, ratio


@settings(max_examples=100, deadline=None)
@given(st.floats(1, 1e15))
def test_amounts_are_within_half_a_percent(value: float) -> None:
    number, _, prefix = amount(value).partition(" ")

    factor = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}[prefix]
    assert math.isclose(float(number) * factor, value, rel_tol=0.005, abs_tol=0.005)


def test_amounts_may_be_negative_or_unknown() -> None:
    assert amount(-1_250_000, "B") == "-1.25 MB"
    assert percent(-0.25) == "-25 %"
    assert (ratio(1, 4), ratio(None, 4), ratio(1, None), ratio(1, 0)) == (
        *(0.25, None, None, None),
    )
