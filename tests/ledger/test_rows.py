"""Rows that are packed away are the rows that were given."""

import random
import sys
from dataclasses import asdict

import pytest

from flwr_autoflip.ledger.rows import BLOCK, NodeRow, Rows


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
