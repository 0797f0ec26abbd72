"""Robust means: hand-computed numbers, and what attackers cannot move."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.methods.guidance import normalize
from flwr_autoflip.methods.robust import parse_combination, trimmed_mean


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
