"""Robust means and limits: hand-computed numbers, and what attackers cannot move."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from flwr_autoflip.core.errors import AutoFlipError
from flwr_autoflip.core.guidance import normalize
from flwr_autoflip.core.robust import (
    FAR,
    SPREADS,
    far_outside,
    parse_combination,
    trimmed_mean,
)


def test_trimmed_mean_by_hand() -> None:
    values = np.float32([[1, 9], [2, 0], [3, 0], [4, 0], [100, 0]])

    np.testing.assert_array_equal(trimmed_mean(values, 0.0), [22, 1.8])
    np.testing.assert_array_equal(trimmed_mean(values, 0.2), [3, 0])
    np.testing.assert_array_equal(trimmed_mean(values, 0.19), [22, 1.8])  # none of five
    np.testing.assert_array_equal(trimmed_mean(values[:4], 0.5), [2.5, 0])


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 5)),
               elements=st.integers(0, 99)),
    st.floats(0, 0.5),
)  # fmt: skip
def test_trimmed_means_match_a_sorted_loop(values: Any, trim: float) -> None:
    count = len(values)
    out = min(int(trim * count + 1e-9), (count - 1) // 2)
    expected = [np.mean(sorted(column)[out : count - out]) for column in values.T]

    np.testing.assert_allclose(trimmed_mean(values, trim), expected, rtol=1e-6)
    np.testing.assert_allclose(trimmed_mean(values, 0.5), np.median(values, axis=0))


@given(st.data())
def test_what_is_trimmed_cannot_leave_the_honest_values(data: st.DataObject) -> None:
    honest = data.draw(hnp.arrays(np.float32, (8, 3), elements=st.integers(0, 50)))
    bad = data.draw(hnp.arrays(np.float32, (2, 3), elements=st.integers(0, 2**20)))

    found = trimmed_mean(np.concatenate([honest, bad]), 0.2)

    assert (honest.min(0) <= found).all()
    assert (found <= honest.max(0)).all()


@pytest.mark.parametrize(
    ("text", "trim"), [("mean", 0.0), ("median", 0.5), ("trimmed-mean:0.1", 0.1)]
)
def test_combinations(text: str, trim: float) -> None:
    assert parse_combination(text) == trim


@pytest.mark.parametrize(
    "text",
    ["", "trimmed-mean", "trimmed-mean:0", "trimmed-mean:0.5", "mean:0.1", "nan", None],
)
def test_other_combinations_are_errors(text: Any) -> None:
    with pytest.raises(AutoFlipError, match="combination must be 'mean'"):
        parse_combination(text)


# --- Every explorer at one scale ---


def test_client_scale_by_hand() -> None:
    small, large = {"w": np.float32([1, 3])}, {"w": np.float32([600, 200])}

    raw = normalize([small, large], "layer", "raw")["w"]
    scaled = normalize([small, large], "layer", "tensor")["w"]
    by_client = normalize([small, large], "client", "tensor")["w"]

    # Means 1: (.5, 1.5) and (1.5, .5), so that both coordinates are alike.
    np.testing.assert_array_equal(raw, [1, 0])
    np.testing.assert_array_equal(scaled, [0, 0])
    np.testing.assert_array_equal(by_client, [0.5, 0.5])


@settings(deadline=None)
@given(st.data())
def test_no_scale_of_one_explorer_changes_guidance(data: st.DataObject) -> None:
    values = data.draw(hnp.arrays(np.float32, (4, 6), elements=st.integers(0, 50)))
    reports = [{"w": row} for row in values]
    power = data.draw(st.integers(-20, 40))
    loud = [*reports[:3], {"w": np.ldexp(values[3], power)}]
    trim = data.draw(st.sampled_from([0.0, 0.25, 0.5]))

    for normalization in ("layer", "client"):
        found = normalize(loud, normalization, "tensor", trim)["w"]
        expected = normalize(reports, normalization, "tensor", trim)["w"]

        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_tensor_that_did_not_move_counts_nothing() -> None:
    moved, still = {"w": np.float32([1, 3])}, {"w": np.float32([0, 0])}

    np.testing.assert_array_equal(
        normalize([moved, still], "layer", "tensor")["w"], [0, 1]
    )


def test_a_tiny_scale_overflows_nothing() -> None:
    tiny = {"w": np.float32([1e-45, 0])}

    guidance = normalize([tiny, {"w": np.float32([1, 2])}], "layer", "tensor")["w"]

    assert np.isfinite(guidance).all()


# --- Far outside ---


def test_the_limit_by_hand() -> None:
    alike = far_outside([1.0, 1.0, 1.0, 1e6])
    unlike = far_outside([1.0, 2.0, 4.0, 8.0, 16.0])

    assert alike == pytest.approx((1.0, 10.0))
    # Median 4; absolute deviations of ln 2 * (2, 1, 0, 1, 2) have median ln 2.
    assert unlike == pytest.approx((4.0, 4 * 2 ** (5 * 1.4826)))


def test_two_explorers_cannot_be_compared() -> None:
    assert far_outside([1.0, 1e9])[1] == far_outside([])[1] == np.inf


def honest_norms(seed: int, count: int) -> NDArray[np.float64]:
    """Draw norms of nodes with few data, or a hundred times as many."""
    return np.sqrt(np.random.default_rng(seed).integers(5, 500, count))


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.integers(0, 6))
def test_honest_norms_of_any_amount_of_data_pass_beside_attackers(
    seed: int, share: int
) -> None:
    honest = honest_norms(seed, 20 - share)

    _, limit = far_outside([*honest, *np.full(share, 1e5)])

    # Median and spread are within those of the honest, who are more than half.
    widest = (honest.max() / honest.min()) ** (1.4826 * SPREADS)
    assert honest.max() <= limit <= honest.max() * max(FAR, widest) * (1 + 1e-9)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.integers(0, 4))
def test_a_fifth_who_attack_are_found_whatever_the_others_draw(
    seed: int, share: int
) -> None:
    norms = [*honest_norms(seed, 20 - share), *np.full(share, 1e5)]

    assert far_outside(norms)[1] < 1e5


@pytest.mark.parametrize(("share", "missed"), [(5, 0), (6, 2)])
def test_attackers_are_found_but_for_few_draws_of_the_others(
    share: int, missed: int
) -> None:
    attackers = np.full(share, 1e5)
    draws = (honest_norms(seed, 20 - share) for seed in range(2000))

    limits = [far_outside([*honest, *attackers])[1] for honest in draws]

    assert sum(limit >= 1e5 for limit in limits) <= missed  # of 2,000
    assert min(limits) < 1e3
