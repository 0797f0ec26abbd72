"""A run's figures and curves by hand, and ledgers that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import make_ledger

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.ledger.ledger import Ledger, total
from flwr_autoflip.ledger.page.curves import curve
from flwr_autoflip.ledger.page.nodes import failure_table
from flwr_autoflip.ledger.page.runs import (
    MOST_COLUMNS,
    Run,
    failures,
    node_figures,
    read_runs,
    summarise,
    units_kept,
)
from flwr_autoflip.ledger.rows import NodeRow, Rows


def test_figures_by_hand() -> None:
    # two explorers: 2 x (1000 + 1100) bytes; 10 rounds of 3 nodes: 250 + 275 each
    found = summarise(Run("a", make_ledger(None, 10, 3).rows))

    assert found["bytes_down"] == 2 * 1000 + 30 * 250
    assert found["bytes_up"] == 2 * 1100 + 30 * 275
    assert found["exploration_bytes"] == 4200
    assert found["dense_bytes"] == 30 * 2100  # the explorers' count nothing there
    assert found["saved_bytes"] == 30 * 2100 - 4200 - 30 * 525
    assert found["client_macs"] == 3 * 10 * (2 * 500 + 30 * 125)
    assert found["exploration_macs"] == 3 * 10 * 2 * 500
    assert (found["rounds"], found["nodes"], found["failures"]) == (10, 3, 0)
    last = [0.9 - 0.8 * 0.9**n for n in range(6, 11)]
    assert found["value"] == pytest.approx(np.mean(last))
    assert (found["metric"], found["parameters"]) == ("top1", 250)
    # savings may be negative
    found = summarise(Run("a", make_ledger(None, 1, 1, ratio=0.9).rows))
    assert found["saved_bytes"] == 2100 - 4200 - (900 + 990)


def test_sums_over_rounds_by_hand() -> None:
    run = Run("a", make_ledger(None, 2, 3).rows)

    np.testing.assert_array_equal(
        run.spent("bytes_down", "bytes_up"), [4200, 4200 + 3 * 525, 4200 + 6 * 525]
    )
    np.testing.assert_array_equal(run.dense_moved(), [0, 6300, 12600])
    np.testing.assert_array_equal(run.dense_spent(), [0, 45000, 90000])


def test_ledgers_that_say_less_are_not_added_to() -> None:
    old = Run("a", make_ledger(None, 3, 2, old=True).rows)
    found = summarise(old)
    alone = Run("a", old.rows[:2])  # exploring

    assert (found["dense_bytes"], found["saved_bytes"]) == (None, None)
    assert old.dense_units == {}
    assert units_kept(old)["conv1"] == [4, 4, 4, 4]
    assert found["dense_parameters"] == 1000
    assert summarise(alone)["value"] is None
    assert units_kept(alone) == {}
    assert alone.dense_spent() is None


def with_plan(rows: Rows, server_round: int) -> Run:
    plan = next(row for row in rows if row["phase"] == "plan")
    other = {**plan["plan"], "units": {"conv1": 1, "conv2": 2, "fc1": 3}}
    return Run("a", [*rows, {**plan, "round": server_round, "plan": other}])


def test_plans_hold_until_the_next_one() -> None:
    kept = units_kept(with_plan(make_ledger(None, 4, 1).rows, 3))

    assert kept == {
        "conv1": [4, 4, 4, 1, 1],
        "conv2": [8, 8, 8, 2, 2],
        "fc1": [32, 32, 32, 3, 3],
    }


def test_of_many_rounds_some_are_shown() -> None:
    kept = units_kept(with_plan(make_ledger(None, 4, 1).rows, 99_999))

    assert kept["conv1"] == [4] * (MOST_COLUMNS - 1) + [1]


def test_nodes_and_failures_by_hand() -> None:
    ledger = make_ledger(None, 5, 2)
    rows = [dict(row) for row in ledger.rows]
    for number, row in enumerate(r for r in rows if r["phase"] == "train"):
        if number in (2, 5, 6):
            row |= {"status": "failed", "reason": "x" if number < 6 else "y"}
    run = Run("a", rows)

    nodes, faults = node_figures(run), failures(run)

    assert [node["messages"] for node in nodes] == [6, 6]
    assert sum(node["failures"] for node in nodes) == 3
    assert nodes[0]["seconds"] == pytest.approx(6 * 0.25)
    assert [(f["reason"], f["count"], f["nodes"]) for f in faults] == [
        ("x", 2, 2),
        ("y", 1, 1),
    ]
    assert (faults[0]["first_round"], faults[0]["last_round"]) == (2, 3)
    page = failure_table([run])
    assert ">2 to 3<" in page
    assert ">4<" in page
    assert ">4 to 4<" not in page


# --- Curves ---


def rows_of(top1: list[float]) -> Rows:
    ledger = Ledger()
    ledger.add(NodeRow(0, "explore", 1, bytes_down=50, bytes_up=50))
    for number, value in enumerate(top1):
        if number:
            cost = {"bytes_down": 3, "bytes_up": 4, "forward_macs": 2}
            ledger.add(NodeRow(number, "train", 1, **cost))
        ledger.add_server(number, {"top1": value, "dense-top1": value / 2}, {})
    return ledger.rows


def test_a_curve_by_hand() -> None:
    one = curve(rows_of([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))

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
    one = curve(rows_of(top1))

    assert one.rounds_to(one.mean_until(len(top1) - 1)) is not None


def test_what_was_not_evaluated_is_no_number_or_an_error() -> None:
    ledger = Ledger()
    ledger.add_server(0, {"top1": 0.5}, {})

    assert np.isnan(curve(ledger.rows).dense_top1).all()
    with pytest.raises(AutoFlipError, match="no metric 'acc'; they have: top1"):
        curve(ledger.rows, "acc")
    with pytest.raises(AutoFlipError, match="give start"):
        curve([{"phase": "train", "round": 1}], "acc")


def test_costs_of_rows_in_any_order_are_those_of_the_plain_sum() -> None:
    """A node that explores late is booked in the round in which it does."""
    ledger = make_ledger(None, 7, 3, faults=True)
    rows = ledger.rows[::-1]
    rows.sort(key=lambda row: row["phase"] != "server")  # the server's come first
    rows.append({**ledger.rows[0], "round": 4})

    one = curve(rows)

    for place, number in enumerate(range(7, -1, -1)):
        down, up, macs = (
            total(rows, key, last_round=number)
            for key in ("bytes_down", "bytes_up", "macs")
        )
        assert one.bytes_moved[place] == down + up
        assert one.macs[place] == macs


# --- Reading ---


def test_a_run_is_a_file_or_a_folder_or_many(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_ledger(tmp_path / "runs" / name, 1, 1)
    file = tmp_path / "runs" / "a" / "ledger.jsonl"

    assert [run.name for run in read_runs([file])] == ["a"]
    assert [run.name for run in read_runs([tmp_path / "runs" / "b"])] == ["b"]
    assert [run.name for run in read_runs([tmp_path / "runs"])] == ["a", "b"]
    other = tmp_path / "other" / "a"
    make_ledger(other, 1, 1)
    below = [run.name for run in read_runs([tmp_path])]
    assert below == ["other/a", "runs/a", "runs/b"]
    assert [run.name for run in read_runs([file, other])] == ["runs/a", "other/a"]
    same = [run.name for run in read_runs([file, file])]
    assert len(set(same)) == 2


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(AutoFlipError, match="nowhere does not exist; name a ledger"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(AutoFlipError, match=r"has no ledger\.jsonl in it"):
        read_runs([tmp_path])
    for content in ("", "hello", "[1]\n", '{"a": 1}\n'):
        (tmp_path / "ledger.jsonl").write_text(content)
        with pytest.raises(AutoFlipError, match="holds no rows of a ledger"):
            read_runs([tmp_path])


def test_a_running_ledger_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path, 2, 1)
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"round": 3, "pha')

    assert read_runs([tmp_path])[0].rows == ledger.rows
