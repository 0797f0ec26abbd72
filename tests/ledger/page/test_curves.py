"""Curves by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import make_ledger

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.ledger.ledger import Ledger, NodeRow, total
from flwr_autoflip.ledger.page.curves import curve


def rows_of(top1: list[float]) -> Ledger:
    ledger = Ledger()
    ledger.add(NodeRow(0, "explore", 1, bytes_down=50, bytes_up=50))
    for number, value in enumerate(top1):
        if number:
            ledger.add(
                NodeRow(
                    number,
                    "train",
                    1,
                    bytes_down=3,
                    bytes_up=4,
                    forward_macs=2,
                )
            )
        ledger.add_server(number, {"top1": value, "dense-top1": value / 2}, {})
    return ledger


def test_a_curve_by_hand() -> None:
    one = curve(rows_of([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).rows)

    # exploration's 100 bytes are there before round 1
    np.testing.assert_array_equal(one.bytes_moved, [100, 107, 114, 121, 128, 135, 142])
    np.testing.assert_array_equal(one.macs, [0, 6, 12, 18, 24, 30, 36])
    np.testing.assert_allclose(one.smooth(), [np.nan] * 4 + [0.2, 0.3, 0.4])
    assert one.mean_until(5) == pytest.approx(0.3)
    assert one.rounds_to(0.29) == 5
    assert one.rounds_to(0.9) is None
    np.testing.assert_allclose(one.dense_top1, one.top1 / 2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=5, max_size=30))
def test_every_run_reaches_its_own_final_mean(top1: list[float]) -> None:
    one = curve(rows_of(top1).rows)

    assert one.rounds_to(one.mean_until(len(top1) - 1)) is not None


def test_what_was_not_evaluated_is_not_a_number() -> None:
    ledger = Ledger()
    ledger.add_server(0, {"top1": 0.5}, {})

    assert np.isnan(curve(ledger.rows).dense_top1).all()


def test_a_metric_nobody_gave_is_an_error() -> None:
    with pytest.raises(AutoFlipError, match="no metric 'acc'; they have: dense-top1, "):
        curve(rows_of([0.5]).rows, "acc")
    with pytest.raises(AutoFlipError, match="give start"):
        curve([{"phase": "train", "round": 1}], "acc")


def test_costs_of_rows_in_any_order_are_those_of_the_plain_sum() -> None:
    """A node that explores late is booked in the round in which it does."""
    ledger = make_ledger(None, 7, 3, faults=True)
    rows = ledger.rows[::-1]
    rows.sort(key=lambda row: row["phase"] != "server")  # the server's come first
    rows.append({**ledger.rows[0], "round": 4})

    one = curve(rows)

    servers = [row["round"] for row in rows if row["phase"] == "server"]
    assert servers == [7, 6, 5, 4, 3, 2, 1, 0]
    for place, number in enumerate(servers):
        down, up, macs = (
            total(rows, key, last_round=number)
            for key in ("bytes_down", "bytes_up", "macs")
        )
        assert one.bytes_moved[place] == down + up
        assert one.macs[place] == macs
