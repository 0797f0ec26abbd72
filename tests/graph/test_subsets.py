"""Subsets as numbers: by hand, there and back, close to the bound, strangers' bits."""

from itertools import combinations
from math import comb, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.subsets import BLOCK, read_subset, subset_bits, write_subset


def subset(size: int, members: tuple[int, ...]) -> NDArray[np.bool_]:
    chosen = np.zeros(size, np.bool_)
    chosen[list(members)] = True
    return chosen


def test_all_subsets_of_four_are_numbered_in_order() -> None:
    codes = [write_subset(subset(4, pair)) for pair in combinations(range(4), 2)]

    # Two members in three bits, then 5 to 0: what comes later starts with zeros.
    assert codes == [f"010{number:03b}" for number in (5, 4, 3, 2, 1, 0)]


def test_all_or_none_takes_no_number() -> None:
    assert write_subset(subset(5, ())) == "000"
    assert write_subset(subset(5, (0, 1, 2, 3, 4))) == "101"
    assert write_subset(subset(0, ())) == ""


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 300), st.floats(0, 1))
def test_there_and_back(seed: int, size: int, share: float) -> None:
    chosen = np.random.default_rng(seed).random(size) < share
    digits = "101" + write_subset(chosen) + "11"

    read, end = read_subset(digits, 3, size)

    np.testing.assert_array_equal(read, chosen)
    assert end == len(digits) - 2
    assert len(digits) - 5 <= subset_bits(size)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.97])
def test_long_ones_in_blocks_near_the_entropy(share: float) -> None:
    size = BLOCK + 1000
    chosen = np.random.default_rng(0).random(size) < share

    digits = write_subset(chosen)

    read, end = read_subset(digits, 0, size)
    np.testing.assert_array_equal(read, chosen)
    assert end == len(digits) <= subset_bits(size)
    bound = log2(comb(size, int(chosen.sum())))
    assert len(digits) <= 1.03 * bound + 16


@pytest.mark.parametrize(
    ("digits", "says"),
    [
        ("01", "2 of 3 bits"),
        ("11111", "cannot have 7 members"),
        ("01011", "has 2 of 3 bits"),
        ("010110", "number 6"),
    ],
)
def test_strangers_bits(digits: str, says: str) -> None:
    with pytest.raises(WireError, match=says):
        read_subset(digits, 0, 4)
