"""Rows, totals and files."""

import json
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from flwr_autoflip.errors import DamagedFileError
from flwr_autoflip.ledger.ledger import Ledger, read_ledger, total, unknown
from flwr_autoflip.ledger.rows import BLOCK, STEP_PER_FORWARD, NodeRow, Rows


def test_macs_by_hand() -> None:
    # One forward and two backward products of the same size; 400 without gradients.
    assert STEP_PER_FORWARD == 3
    assert NodeRow(1, "train", 7, forward_macs=1000, eval_macs=400).macs == 3400


def test_what_is_unknown_is_null_and_a_total_says_how_often() -> None:
    ledger = Ledger()
    ledger.add(NodeRow(1, "train", 1, forward_macs=10))
    ledger.add(NodeRow(1, "train", 2, forward_macs=None, uncounted="odd"))
    ledger.add(NodeRow(1, "train", 3, eval_macs=None, examples=None))
    ledger.add_server(1, {}, {})

    assert [row["macs"] for row in ledger.rows[:3]] == [30, None, None]
    assert total(ledger.rows, "macs") == 30
    assert unknown(ledger.rows, "macs") == 2
    assert unknown(ledger.rows, "examples") == 1


def test_totals_include_exploration_and_failures() -> None:
    ledger = Ledger()
    ledger.add(NodeRow(0, "explore", 1, bytes_down=100))
    ledger.add(NodeRow(1, "train", 1, bytes_down=10))
    ledger.add(NodeRow(1, "train", 2, status="failed", reason="x", bytes_down=10))
    ledger.add(NodeRow(2, "evaluate", 1, bytes_down=1))
    ledger.add_server(2, {}, {})

    assert total(ledger.rows, "bytes_down") == 121
    assert total(ledger.rows, "bytes_down", last_round=1) == 120
    assert total(ledger.rows, "bytes_down", ["explore"]) == 100


def test_rows_are_readable_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.add(NodeRow(0, "explore", 7, bytes_down=5, bytes_up=3))

    first = read_ledger(path)
    ledger.add_server(1, {"top1": 0.5}, {"parameters": 9})
    path.write_text(path.read_text() + '{"round": 1, "pha')  # still being written

    assert [row["phase"] for row in first] == ["explore"]
    assert read_ledger(path) == ledger.rows
    assert json.loads(path.read_text().splitlines()[0])["macs"] == 0


def test_server_rows_hold_the_wall_clock() -> None:
    ledger = Ledger()
    opened = time.monotonic()
    time.sleep(0.05)
    ledger.add_server(0, {}, {})
    passed = time.monotonic() - opened

    assert 0.05 <= ledger.rows[0]["seconds"] <= passed + 0.05


# --- In memory ---


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
def test_rows_are_a_list_that_grows(count: int) -> None:
    given = [
        {"round": i, "seconds": i / 7, "metrics": {"a": [i]}} for i in range(count)
    ]

    rows = Rows(given)

    assert len(rows) == count
    assert list(rows) == given
    assert rows == given
    assert rows != [*given, {}]
    assert rows[-3:] == given[-3:]
    assert rows[BLOCK - 2 : BLOCK + 2] == given[BLOCK - 2 : BLOCK + 2]
    for place in {0, count // 2, count - 1} & set(range(count)):
        assert rows[place] == given[place]
    with pytest.raises(IndexError):
        rows[count]


def test_a_ledgers_row_takes_few_bytes() -> None:
    def row(i: int) -> NodeRow:
        node = random.Random(i % 500).getrandbits(63)  # as Flower's ids are
        return NodeRow(i // 500, "train", node, bytes_up=900 + i % 7, seconds=i / 7e3)

    rows = Rows(asdict(row(i)) for i in range(10 * BLOCK))

    packed = sum(map(len, rows._packed)) / len(rows)
    plain = sys.getsizeof(asdict(row(1)))  # without its values
    assert packed < 60 < plain


# --- Checkpoints ---


def test_a_ledger_goes_on_from_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.add(NodeRow(1, "train", 7, bytes_down=5))
    mark = ledger.mark()
    ledger.add(NodeRow(2, "train", 7, status="refused", reason="odd", bytes_down=3))
    ledger.add_server(2, {"top1": 0.5}, {})
    ledger.add(NodeRow(3, "train", 7, bytes_down=2))
    path.write_text(path.read_text() + '{"round": 3, "pha')

    again = Ledger(path)
    again.resume(mark)
    again.add(NodeRow(2, "train", 7, bytes_down=4))

    rows = read_ledger(path)
    assert rows == again.rows
    assert [(r["round"], r["status"]) for r in rows] == [
        (1, "ok"),
        (2, "lost"),
        (3, "lost"),
        (2, "ok"),
    ]
    assert rows[1]["reason"].endswith("it was refused: odd")
    assert total(rows, "bytes_down") == 5 + 3 + 2 + 4
    again.check(again.mark())

    third = Ledger(path)
    third.resume(mark)
    assert [r["reason"] for r in third.rows[1:3]] == [r["reason"] for r in rows[1:3]]


def test_a_ledger_that_was_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.add(NodeRow(1, "train", 7))
    mark = ledger.mark()

    for content in (b"", path.read_bytes()[:-1], path.read_bytes().replace(b"7", b"8")):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match="does not begin with this run's"):
            Ledger(path).resume(mark)
        assert path.read_bytes() == content
    path.unlink()
    with pytest.raises(DamagedFileError, match="does not begin"):
        Ledger(path).check(mark)


def test_a_file_stays_until_a_ledger_is_begun(tmp_path: Path) -> None:
    path = tmp_path / "x"
    Ledger(path).add(NodeRow(1, "train", 7))
    content = path.read_bytes()

    ledger = Ledger(path)
    assert path.read_bytes() == content
    assert list(ledger.rows) == []

    ledger.add(NodeRow(2, "train", 8))  # the first row begins it
    assert [row["node"] for row in read_ledger(path)] == [8]
    ledger.clear()
    assert read_ledger(path) == []


@pytest.mark.parametrize(
    "line",
    [b"5", b"[]", b'{"round": 1}', b'{"round": 1, "phase": "train"}', b"[" * 10**5],
)
def test_a_ledger_ends_at_what_is_no_row(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.add(NodeRow(1, "train", 7, bytes_up=5))
    mark = ledger.mark()
    with path.open("ab") as file:
        file.write(line + b"\n")

    again = Ledger(path)
    again.resume(mark)

    assert [row["bytes_up"] for row in again.rows] == [5]
