"""Eq. 11 and its relatives: hand-computed choices, and brute-force oracles."""

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.methods.threshold import (
    Absolute,
    Compression,
    Cost,
    Cumulative,
    Kept,
    MacRatio,
    Quantile,
    Threshold,
    cumulative_count,
    keep_even,
    keep_top,
    parse_threshold,
    select,
)


@pytest.mark.parametrize(
    ("scores", "threshold", "expected"),
    [
        # Eq. 11: G < T_p is pruned; G = T_p is kept; all may be pruned, or none.
        ([0.29, 0.3, 0.31, 0.0], Absolute(0.3), [1, 2]),
        ([0.0, 0.5], Absolute(0.0), [0, 1]),
        ([0.1, 0.2], Absolute(0.9), []),
        # .3 of 5 is 1.5: one is pruned; of ties the later ones.
        ([0.5, 0.1, 0.4, 0.2, 0.3], Quantile(0.3), [0, 2, 3, 4]),
        ([0.5, 0.5, 0.5, 0.5], Quantile(0.5), [0, 1]),
        # Quantile .3 of (0, .2, .4, .6) stands at place .9: .18, so .2 is kept.
        ([0.0, 0.2, 0.4, 0.6], Quantile(0.3, "global"), [1, 2, 3]),
        # Place .3 * 5 = 1.5 lies among the four zeros: every zero is pruned.
        ([0, 0, 0, 0, 0.5, 1], Quantile(0.3, "global"), [4, 5]),
        # Sum 1: .5 + .25 = .75 >= .7 with two, .5 < .7 with one.
        ([0.05, 0.5, 0.2, 0.25], Cumulative(0.7), [1, 3]),
        ([0.5, 0.25, 0.25], Cumulative(0.75), [0, 1]),  # .75 exactly is enough
        ([0, 0, 0], Cumulative(0.7), [0, 1, 2]),  # a layer that did not move
    ],
)
def test_one_layer_by_hand(
    scores: list[float], threshold: Threshold, expected: list[int]
) -> None:
    kept = select({"a": np.float32(scores)}, threshold)

    assert np.flatnonzero(kept["a"]).tolist() == expected


@pytest.mark.parametrize(
    ("threshold", "a", "b"),
    [
        (Quantile(0.5), [True, True, False, False], [[False, True], [True, False]]),
        # Sorted 0 .1 .2 .3 .6 .7 .8 .9: the median is .45.
        (Quantile(0.5, "global"), [True] * 4, [[False] * 2] * 2),
        # .9 + .8 of 3 is .57, with .7 it is .8; of .6 .3 is a half, with .2 .83.
        (Cumulative(0.7), [True, True, True, False], [[False, True], [True, False]]),
    ],
)
def test_layers_decide_alone_or_together(threshold: Threshold, a: Any, b: Any) -> None:
    scores = {
        "a": np.array([0.9, 0.8, 0.7, 0.6]),
        "b": np.array([[0.1, 0.2], [0.3, 0.0]]),
    }

    kept = select(scores, threshold)

    np.testing.assert_array_equal(kept["a"], a)
    np.testing.assert_array_equal(kept["b"], b)


@settings(deadline=None)
@given(
    hnp.arrays(np.int64, st.integers(1, 7), elements=st.integers(0, 20)),
    st.integers(1, 10),
)
def test_cumulative_count_matches_every_subset(scores: np.ndarray, tenths: int) -> None:
    total = int(scores.sum())

    count = cumulative_count(scores.astype(np.float64), tenths / 10)

    # Integers, so that no rounding decides: 10 * part >= tenths * total.
    fits = [
        size
        for size in range(1, len(scores) + 1)
        for part in combinations(scores.tolist(), size)
        if 10 * sum(part) >= tenths * total
    ]
    assert count == (min(fits) if total else len(scores))


@settings(deadline=None)
@given(hnp.arrays(np.float32, 6, elements=st.integers(0, 3)), st.integers(0, 6))
def test_keep_top_matches_a_plain_sort(scores: np.ndarray, count: int) -> None:
    kept = keep_top(scores, count)

    # By falling score, and by position where scores are equal.
    ranked = sorted(range(6), key=lambda place: (-scores[place], place))
    assert np.flatnonzero(kept).tolist() == sorted(ranked[:count])


# --- Compression and MACs: an even share, exact to the last unit ---


def linear_cost(weights: dict[str, int]) -> Cost:
    """Cost of a unit by layer, as a share of all."""

    def cost(kept: Kept) -> float:
        whole = sum(w * kept[name].size for name, w in weights.items())
        return sum(w * kept[name].sum() for name, w in weights.items()) / whole

    return cost


def chain_cost(kept: Kept) -> float:
    """Parameters of a chain of layers a -> b -> c with 3 inputs and 2 outputs."""
    names = sorted(kept)
    widths = [3, *(int(kept[n].sum()) for n in names), 2]
    dense = [3, *(kept[n].size for n in names), 2]
    return sum(p * q for p, q in pairwise(widths)) / sum(
        p * q for p, q in pairwise(dense)
    )


@pytest.mark.parametrize(
    ("threshold", "a", "b"),
    [
        # Parts 1/4, 1/2, 3/4, 1 keep (1, 1), (2, 1), (3, 1), (4, 2) units and cost 11,
        # 12, 13, 24 of 24; the largest within 12 is 1/2.
        (Compression(2), [True, False, True, False], [False, True]),
        (MacRatio(13 / 24), [True, False, True, True], [False, True]),
        (Compression(24 / 13), [True, False, True, True], [False, True]),
    ],
)
def test_targets_by_hand(threshold: Threshold, a: list[bool], b: list[bool]) -> None:
    scores = {"a": np.array([0.4, 0.1, 0.3, 0.2]), "b": np.array([0.1, 0.2])}

    kept = select(scores, threshold, linear_cost({"a": 1, "b": 10}))

    np.testing.assert_array_equal(kept["a"], a)
    np.testing.assert_array_equal(kept["b"], b)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
    st.integers(1, 1000),
    st.integers(0, 2**32 - 1),
)
def test_even_share_matches_a_loop_over_all_ratios(
    sizes: list[int], thousandths: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    scores = {f"l{i}": generator.random(n) for i, n in enumerate(sizes)}
    target = thousandths / 1000

    kept = keep_even(scores, chain_cost, target)

    # Every ratio k/n at which some layer changes, from the smallest; the last that
    # fits wins, and the first one stands whatever it costs.
    ratios = sorted({(k / n, k, n) for n in sizes for k in range(1, n + 1)})
    best = None
    for _, k, n in ratios:
        counts = {name: max(1, k * s.size // n) for name, s in scores.items()}
        choice = {name: keep_top(s, counts[name]) for name, s in scores.items()}
        if best is None or chain_cost(choice) <= target * (1 + 1e-12):
            best = choice
    assert best is not None
    for name in scores:
        np.testing.assert_array_equal(kept[name], best[name])


# --- Short forms ---


@pytest.mark.parametrize(
    ("text", "threshold"),
    [
        ("cumulative:0.7", Cumulative(0.7)),
        (0.3, Absolute(0.3)),
        ("0.3", Absolute(0.3)),
        (0, Absolute(0.0)),
        ("quantile:0.25", Quantile(0.25, "layer")),
        ("global-quantile:0.3", Quantile(0.3, "global")),
        ("2x", Compression(2.0)),
        ("1.5x", Compression(1.5)),
        ("macs:0.25", MacRatio(0.25)),
        ("even-macs:0.25", MacRatio(0.25, exponent=np.inf)),
        (MacRatio(1.0), MacRatio(1.0)),
        (" conv1 = 8 , block.0=2 ", {"conv1": 8, "block.0": 2}),
        ({"conv1": 8}, {"conv1": 8}),
    ],
)
def test_short_forms(text: Any, threshold: Threshold) -> None:
    assert parse_threshold(text) == threshold


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            (
                "",
                "x",
                "auto",
                "cumulative",
                "cumulative:x",
                "macs:",
                "2x:3",
                True,
                None,
                [0.3],
            ),
            r"threshold must be 'macs:0\.25'",
        ),
        (
            (1.0, -0.1, float("nan"), "quantile:1", "global-quantile:-0.1", "0.5x"),
            "must lie in",
        ),
        (
            ("macs:0", "macs:1.1", "cumulative:0", "cumulative:2", "infx", "nanx"),
            "must lie in",
        ),
        ((Cumulative(0.0), Compression(0.0)), "must lie in"),
        ([MacRatio(0.5, exponent) for exponent in (0, -1, float("nan"))], "above 0"),
        (("conv1=many", "conv1=8,fc1", "a=1.5"), "must read 'conv1=8,fc1=32'"),
    ],
)
def test_what_is_no_threshold_is_refused(values: Any, message: str) -> None:
    for value in values:
        with pytest.raises(AutoFlipError, match=message):
            parse_threshold(value)
