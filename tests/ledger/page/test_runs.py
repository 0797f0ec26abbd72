"""A run's figures by hand, and ledgers that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
from ledgers import make_ledger

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.ledger.page.runs import (
    Run,
    dense_units,
    failures,
    node_figures,
    read_runs,
    summarise,
    units_kept,
)


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


def test_savings_may_be_negative() -> None:
    found = summarise(Run("a", make_ledger(None, 1, 1, share=0.9).rows))

    assert found["saved_bytes"] == 2100 - 4200 - (900 + 990)


def test_sums_over_rounds_by_hand() -> None:
    run = Run("a", make_ledger(None, 2, 3).rows)

    np.testing.assert_array_equal(
        run.spent("bytes_down", "bytes_up"), [4200, 4200 + 3 * 525, 4200 + 6 * 525]
    )
    assert run.dense_moved is not None
    np.testing.assert_array_equal(run.dense_moved, [0, 6300, 12600])
    assert run.dense_spent is not None
    np.testing.assert_array_equal(run.dense_spent, [0, 45000, 90000])


def test_old_ledgers_say_less_and_invent_nothing() -> None:
    run = Run("a", make_ledger(None, 3, 2, old=True).rows)
    found = summarise(run)

    assert found["dense_bytes"] is None
    assert found["saved_bytes"] is None
    assert dense_units(run) == {}
    assert units_kept(run)["conv1"] == [4, 4, 4, 4]
    assert found["dense_parameters"] == 1000


def test_a_ledger_of_exploring_alone() -> None:
    rows = make_ledger(None, 0, 0, old=True).rows[:2]
    run = Run("a", rows)

    assert summarise(run)["value"] is None
    assert units_kept(run) == {}
    assert run.dense_spent is None


def test_plans_hold_until_the_next_one() -> None:
    rows = make_ledger(None, 4, 1).rows
    plan = next(row for row in rows if row["phase"] == "plan")
    other = {**plan["plan"], "units": {"conv1": 1, "conv2": 2, "fc1": 3}}
    rows.append({**plan, "round": 3, "plan": other})

    kept = units_kept(Run("a", rows))

    assert kept == {
        "conv1": [4, 4, 4, 1, 1],
        "conv2": [8, 8, 8, 2, 2],
        "fc1": [32, 32, 32, 3, 3],
    }


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
