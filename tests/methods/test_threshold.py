"""Eq. 11 and its relatives: hand-computed choices, and brute-force oracles."""

from itertools import combinations, pairwise

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

SEEDS = st.integers(0, 2**32 - 1)
SCORES = st.floats(0, 1, width=32)


def chosen(scores: list[float], threshold: Threshold) -> list[int]:
    """Select in one layer; give the indices that stay."""
    kept = select({"a": np.float32(scores)}, threshold, {})
    return np.flatnonzero(kept["a"]).tolist()


# --- Eq. 11: absolute ---


def test_absolute_drops_below_and_keeps_equal() -> None:
    # G < T_p goes; G = T_p stays.
    assert chosen([0.29, 0.3, 0.31, 0.0], Absolute(0.3)) == [1, 2]


def test_absolute_0_keeps_all() -> None:
    assert chosen([0.0, 0.5], Absolute(0.0)) == [0, 1]


def test_absolute_may_drop_all() -> None:
    assert chosen([0.1, 0.2], Absolute(0.9)) == []


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, (3, 4), elements=SCORES), st.floats(0, 1, exclude_max=True)
)
def test_absolute_matches_a_naive_loop(scores: np.ndarray, value: float) -> None:
    kept = select({"a": scores}, Absolute(value), {})["a"]

    for place, score in np.ndenumerate(scores):
        assert kept[place] == (not score < np.float32(value))


# --- Quantile ---


def test_layer_quantile_drops_the_same_share_of_every_layer() -> None:
    scores = {
        "a": np.array([0.9, 0.8, 0.7, 0.6]),
        "b": np.array([[0.1, 0.2], [0.3, 0.0]]),
    }

    kept = select(scores, Quantile(0.5), {})

    # The lowest 2 of 4 go, in each.
    np.testing.assert_array_equal(kept["a"], [True, True, False, False])
    np.testing.assert_array_equal(kept["b"], [[False, True], [True, False]])


def test_layer_quantile_drops_whole_units_rounded_down() -> None:
    # .3 of 5 is 1.5: one goes.
    assert chosen([0.5, 0.1, 0.4, 0.2, 0.3], Quantile(0.3)) == [0, 2, 3, 4]


def test_layer_quantile_breaks_ties_by_position() -> None:
    assert chosen([0.5, 0.5, 0.5, 0.5], Quantile(0.5)) == [0, 1]


@settings(deadline=None)
@given(st.integers(1, 200), st.data())
def test_layer_quantile_drops_exactly_k_of_n(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n - 1))

    kept = select({"a": np.arange(n) / n}, Quantile(k / n), {})["a"]

    assert np.count_nonzero(~kept) == k


def test_global_quantile_is_strict_and_one_for_all_layers() -> None:
    scores = {"a": np.array([0.1, 0.2, 0.3]), "b": np.array([0.4, 0.5])}

    kept = select(scores, Quantile(0.5, "global"), {})

    # Sorted .1 .2 .3 .4 .5: the median is .3, and .3 itself goes.
    np.testing.assert_array_equal(kept["a"], [False, False, False])
    np.testing.assert_array_equal(kept["b"], [True, True])


def test_global_quantile_interpolates() -> None:
    # Quantile .3 of (0, .2, .4, .6) stands at place .9: .18, so .2 stays.
    assert chosen([0.0, 0.2, 0.4, 0.6], Quantile(0.3, "global")) == [1, 2, 3]


def test_global_quantile_drops_all_ties() -> None:
    # Place .3 * 5 = 1.5 lies among the four zeros: every zero goes, .67 not .3.
    assert chosen([0, 0, 0, 0, 0.5, 1], Quantile(0.3, "global")) == [4, 5]


# --- Cumulative ---


def test_cumulative_keeps_the_smallest_set_that_holds_the_mass() -> None:
    # Sum 1: .5 + .25 = .75 >= .7 with two, .5 < .7 with one.
    assert chosen([0.05, 0.5, 0.2, 0.25], Cumulative(0.7)) == [1, 3]


def test_cumulative_includes_the_one_that_reaches_the_share() -> None:
    # .5 + .25 is .75 exactly: a third is not needed.
    assert chosen([0.5, 0.25, 0.25], Cumulative(0.75)) == [0, 1]


def test_cumulative_decides_a_layer_at_a_time() -> None:
    scores = {"a": np.array([0.8, 0.1, 0.1]), "b": np.array([0.25] * 4)}

    kept = select(scores, Cumulative(0.7), {})

    # a: .8 of 1 is enough; b: 3 of 4 quarters are needed.
    np.testing.assert_array_equal(kept["a"], [True, False, False])
    np.testing.assert_array_equal(kept["b"], [True, True, True, False])


def test_cumulative_keeps_a_layer_that_did_not_move() -> None:
    assert chosen([0, 0, 0], Cumulative(0.7)) == [0, 1, 2]


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


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1025, 9000), st.integers(1, 10), st.integers(1, 6))
def test_cumulative_count_of_many_is_that_of_sorting(
    seed: int, size: int, tenths: int, power: int
) -> None:
    # Integers, so that sums are exact in any order; skewed, and with many ties.
    draws = np.random.default_rng(seed).random(size)
    scores = np.floor(1000 * draws**power).astype(np.float32)

    count = cumulative_count(scores, tenths / 10)

    mass = np.cumsum(np.sort(scores.astype(np.int64))[::-1])
    assert count == int(np.argmax(10 * mass >= tenths * mass[-1])) + 1


# --- keep_top ---


def test_keep_top_keeps_shape_and_breaks_ties_by_position() -> None:
    kept = keep_top(np.array([[0.5, 0.9], [0.5, 0.5]]), 2)

    np.testing.assert_array_equal(kept, [[True, True], [False, False]])


def test_keep_top_breaks_ties_by_position_in_large_layers() -> None:
    kept = keep_top(np.tile([0.0, 1.0], 500), 5)  # an unstable sort would mix these

    np.testing.assert_array_equal(np.flatnonzero(kept), [1, 3, 5, 7, 9])


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 400), st.integers(1, 30), st.floats(0, 1))
def test_keep_top_is_a_stable_sort(
    seed: int, size: int, levels: int, share: float
) -> None:
    scores = np.random.default_rng(seed).integers(0, levels, size).astype(np.float32)
    count = int(share * size)

    kept = keep_top(scores, count)

    expected = np.argsort(-scores, kind="stable")[:count]
    np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(expected))


@settings(deadline=None)
@given(hnp.arrays(np.float32, 6, elements=SCORES), st.integers(0, 6))
def test_keep_top_keeps_none_below_one_that_goes(
    scores: np.ndarray, count: int
) -> None:
    kept = keep_top(scores, count)

    assert np.count_nonzero(kept) == count
    assert scores[kept].min(initial=1) >= scores[~kept].max(initial=0)


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


def test_compression_by_hand() -> None:
    scores = {"a": np.array([0.4, 0.1, 0.3, 0.2]), "b": np.array([0.1, 0.2])}
    cost = {Compression: linear_cost({"a": 1, "b": 10})}

    kept = select(scores, Compression(2), cost)

    # Shares 1/4, 1/2, 3/4, 1 keep (1, 1), (2, 1), (3, 1), (4, 2) units and cost 11,
    # 12, 13, 24 of 24; the largest within 12 is 1/2.
    np.testing.assert_array_equal(kept["a"], [True, False, True, False])
    np.testing.assert_array_equal(kept["b"], [False, True])


def test_mac_ratio_by_hand() -> None:
    scores = {"a": np.array([0.4, 0.1, 0.3, 0.2]), "b": np.array([0.1, 0.2])}
    cost = {MacRatio: linear_cost({"a": 1, "b": 10})}

    kept = select(scores, MacRatio(13 / 24), cost)

    np.testing.assert_array_equal(kept["a"], [True, False, True, True])
    np.testing.assert_array_equal(kept["b"], [False, True])


def test_each_target_uses_its_own_cost() -> None:
    scores = {"a": np.array([0.4, 0.1, 0.3, 0.2])}

    def free(kept: Kept) -> float:
        return 0.0

    cost = {Compression: free, MacRatio: linear_cost({"a": 1})}

    assert select(scores, Compression(4), cost)["a"].sum() == 4
    assert select(scores, MacRatio(0.25), cost)["a"].sum() == 1


def test_target_below_reach_leaves_one_a_layer() -> None:
    scores = {"a": np.array([0.1, 0.9]), "b": np.array([0.5, 0.4, 0.3])}

    kept = keep_even(scores, chain_cost, 1e-6)

    np.testing.assert_array_equal(kept["a"], [False, True])
    np.testing.assert_array_equal(kept["b"], [True, False, False])


@pytest.mark.parametrize("threshold", [Compression(1), MacRatio(1)])
def test_target_of_the_whole_keeps_all(threshold: Threshold) -> None:
    scores = {"a": np.zeros(7), "b": np.ones(3)}

    kept = select(scores, threshold, {Compression: chain_cost, MacRatio: chain_cost})

    assert all(choice.all() for choice in kept.values())


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
        ("cumulative:0.5", Cumulative(0.5)),
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
    ],
)
def test_short_forms(text: float | str, threshold: Threshold) -> None:
    assert parse_threshold(text) == threshold


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "x",
            "auto",
            "cumulative",
            "cumulative:x",
            "quantile",
            "macs:",
            "2x:3",
            "macs",
        ),
        *(True, None, [0.3]),
    ],
)
def test_what_is_no_threshold_is_refused(value: object) -> None:
    with pytest.raises(AutoFlipError, match=r"threshold must be 'macs:0\.25'"):
        parse_threshold(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        *(1.0, -0.1, float("nan"), "quantile:1", "global-quantile:-0.1", "0.5x"),
        *(
            "macs:0",
            "macs:1.1",
            "cumulative:0",
            "cumulative:2",
            Cumulative(0.0),
            Compression(0.0),
        ),
        *("infx", "nanx"),
    ],
)
def test_out_of_range_is_refused(value: Threshold | float | str) -> None:
    with pytest.raises(AutoFlipError, match="must lie in"):
        parse_threshold(value)


@pytest.mark.parametrize("exponent", [0, -1, float("nan")])
def test_an_exponent_must_be_positive(exponent: float) -> None:
    with pytest.raises(AutoFlipError, match="must be above 0"):
        parse_threshold(MacRatio(0.5, exponent))
