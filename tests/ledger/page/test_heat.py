"""Cells of heat maps, by hand."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_autoflip.ledger.page.heat import strip


def test_equal_neighbours_are_one_cell() -> None:
    drawn = strip([1.0, 1.0, 0.5, 0.0], "conv1")

    cells = re.findall(r'x="(\d+)" y="0" width="(\d+)"', drawn)
    assert cells == [("0", "2"), ("2", "1"), ("3", "1")]
    assert re.findall(r'fill-opacity="([\d.]+)"', drawn) == ["1", "0.54", "0.08"]
    assert "conv1, rounds 0-1: 100 %" in drawn
    assert "conv1, round 3: 0 %" in drawn


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_every_round_has_one_cell_of_nearly_its_share(shares: list[float]) -> None:
    drawn = strip(shares, "x")

    found: dict[int, float] = {}
    for path in re.findall(r"<(?:path|rect)[^>]*>", drawn):
        (opacity,) = re.findall(r'fill-opacity="([\d.]+)"', path)
        places = re.findall(r"M(\d+) 0h(\d+)v1", path)
        places += re.findall(r'x="(\d+)" y="0" width="(\d+)"', path)
        for first, count in places:
            for number in range(int(first), int(first) + int(count)):
                assert number not in found
                found[number] = float(opacity)
    assert sorted(found) == list(range(len(shares)))
    for number, share in enumerate(shares):
        assert found[number] == pytest.approx(0.08 + 0.92 * share, abs=0.025)
