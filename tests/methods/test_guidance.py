"""Eqs. 7 and 10 by hand, and sums by unit against a naive loop."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import (
    ZOO,
    flat_layout,
    layout_of,
    mlp_layout,
    random_arrays,
)

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.methods.guidance import (
    deviation,
    normalize,
    report_by_unit,
    split_by_group,
    sum_by_unit,
    unit_scores,
    unit_sizes,
)
from flwr_autoflip.methods.statistics import RunningStatistics, SummedReports

DEVIATIONS = st.floats(0, 1e6, width=32)


# --- Eq. 7 ---


def test_deviation_by_hand() -> None:
    initial = np.float32([[1.0, -2.0], [0.5, 3.0]])
    final = np.float32([[1.5, -2.0], [-0.5, 1.0]])

    squared = deviation(initial, final)

    # (1 - 1.5)^2 = .25, 0, (0.5 + 0.5)^2 = 1, (3 - 1)^2 = 4
    np.testing.assert_array_equal(squared, np.float32([[0.25, 0], [1, 4]]))
    assert squared.dtype == np.float32


def test_deviation_of_float64_is_float32() -> None:
    squared = deviation(np.array(2.0), np.array(5.0))

    np.testing.assert_array_equal(squared, np.float32(9))
    assert squared.dtype == np.float32


@settings(deadline=None)
@given(st.data())
def test_deviation_is_symmetric_and_not_negative(data: st.DataObject) -> None:
    values = hnp.arrays(np.float32, 5, elements=st.floats(-1e3, 1e3, width=32))
    one, other = data.draw(values), data.draw(values)

    squared = deviation(one, other)

    assert (squared >= 0).all()
    np.testing.assert_array_equal(squared, deviation(other, one))
    np.testing.assert_array_equal(deviation(one, one), 0)


# --- Eq. 10 ---

THREE = [
    {"w": np.float32([0, 4, 2, 7]), "b": np.float32([[1], [0]])},
    {"w": np.float32([1, 2, 2, 0]), "b": np.float32([[3], [0]])},
    {"w": np.float32([5, 0, 2, 0]), "b": np.float32([[2], [0]])},
]
"""Three explorers' deviations of two tensors."""


def test_client_normalization_by_hand() -> None:
    guidance = normalize(THREE, "client")

    # Coordinate 0: (0, 1, 5) -> (0, .2, 1), mean .4
    # 1: (4, 2, 0) -> (1, .5, 0), mean .5; 2: nobody differs, 0/0 = 0
    # 3: (7, 0, 0) -> (1, 0, 0), mean 1/3
    np.testing.assert_allclose(guidance["w"], [0.4, 0.5, 0, 1 / 3], rtol=1e-6)
    # (1, 3, 2) -> (0, 1, .5), mean .5; nobody moved: 0/0 = 0
    np.testing.assert_allclose(guidance["b"], [[0.5], [0]], rtol=1e-6)
    assert guidance["w"].dtype == np.float32


def test_layer_normalization_by_hand() -> None:
    guidance = normalize(THREE, "layer")

    # Means (2, 2, 2, 7/3): lowest 2, span 1/3 -> (0, 0, 0, 1)
    np.testing.assert_allclose(guidance["w"], [0, 0, 0, 1], atol=1e-6)
    # Means (2, 0) -> (1, 0)
    np.testing.assert_allclose(guidance["b"], [[1], [0]], rtol=1e-6)
    assert guidance["b"].dtype == np.float32


def test_layer_normalization_takes_the_mean_first() -> None:
    reports = [{"w": np.float32([0, 1, 8])}, {"w": np.float32([2, 1, 0])}]

    guidance = normalize(reports, "layer")

    # Means (1, 1, 4) -> (0, 0, 1); the other way round would give (.5, .3, .5).
    np.testing.assert_array_equal(guidance["w"], np.float32([0, 0, 1]))


def test_layer_is_the_default() -> None:
    np.testing.assert_array_equal(normalize(THREE)["w"], normalize(THREE, "layer")["w"])


@pytest.mark.parametrize("normalization", ["client", "layer"])
def test_nobody_moved_is_0(normalization: str) -> None:
    reports = [{"w": np.zeros(3, np.float32)}] * 2

    np.testing.assert_array_equal(normalize(reports, normalization)["w"], 0)


def test_constant_layer_is_0() -> None:
    reports = [{"w": np.full(3, 5, np.float32)}]

    np.testing.assert_array_equal(normalize(reports, "layer")["w"], 0)


def test_two_explorers_by_client_are_one_half_wherever_they_differ() -> None:
    reports = [{"w": np.float32([0, 9, 3])}, {"w": np.float32([4, 1, 3])}]

    np.testing.assert_array_equal(normalize(reports, "client")["w"], [0.5, 0.5, 0])


@settings(deadline=None)
@given(st.data())
def test_client_guidance_lies_between_1_k_and_1_less_1_k(data: st.DataObject) -> None:
    k = data.draw(st.integers(2, 8))
    values = data.draw(hnp.arrays(np.float32, (k, 6), elements=DEVIATIONS))

    guidance = normalize([{"w": row} for row in values], "client")["w"]

    differ = np.ptp(values, axis=0) > 0
    np.testing.assert_array_equal(guidance[~differ], 0)
    assert (guidance[differ] >= 1 / k - 1e-6).all()
    assert (guidance[differ] <= 1 - 1 / k + 1e-6).all()


@settings(deadline=None)
@given(st.data())
def test_normalizations_match_a_naive_loop(data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 4))
    values = data.draw(hnp.arrays(np.float32, (k, 4), elements=st.integers(0, 50)))
    reports = [{"w": row} for row in values]
    by_client, means = np.zeros(4), values.astype(float).mean(0)
    for i in range(4):
        column = values[:, i].astype(float)
        span = column.max() - column.min()
        by_client[i] = ((column - column.min()) / span).mean() if span else 0
    span = means.max() - means.min()
    by_layer = (means - means.min()) / span if span else np.zeros(4)

    np.testing.assert_allclose(normalize(reports, "client")["w"], by_client, atol=1e-6)
    np.testing.assert_allclose(normalize(reports, "layer")["w"], by_layer, atol=1e-6)


@settings(deadline=None)
@given(st.data())
def test_chunks_and_running_sums_match_the_plain_formula(data: st.DataObject) -> None:
    k, size = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    values = data.draw(hnp.arrays(np.float32, (k, size), elements=st.integers(0, 50)))
    reports = [{"w": row} for row in values]
    low, high = values.min(0), values.max(0)
    span = np.where(high > low, high - low, 1)
    by_client = ((values.astype(float) - low) / span).mean(0)
    means = values.astype(float).mean(0)
    by_layer = (means - means.min()) / (np.ptp(means) or 1)

    with patch("flwr_autoflip.methods.statistics.CHUNK", data.draw(st.integers(1, 10))):
        running = RunningStatistics(extremes=True)
        for report in reports:
            running.add(report)
        for known in (reports, SummedReports(reports, running)):
            client, layer = (normalize(known, key)["w"] for key in ("client", "layer"))
            np.testing.assert_allclose(client, by_client, atol=1e-6)
            np.testing.assert_allclose(layer, by_layer, atol=1e-6)


def test_no_report_is_an_error() -> None:
    with pytest.raises(AutoFlipError, match="at least one explorer"):
        normalize([])


def test_unknown_normalization_is_an_error() -> None:
    with pytest.raises(AutoFlipError, match="'client' or 'layer', got 'tensor'"):
        normalize(THREE, "tensor")  # type: ignore[arg-type]


# --- By unit ---


def test_sum_by_unit_by_hand() -> None:
    values = {
        "conv.weight": np.float32([[[[1, 2]]], [[[3, 4]]]]),
        "norm.weight": np.float32([10, 20]),
        "norm.bias": np.float32([100, 200]),
        "fc1.weight": np.float32([[1, 1, 1, 1], [2, 2, 2, 2], [0, 0, 0, 5]]),
        "fc1.bias": np.float32([1000, 0, 3]),
        "fc2.weight": np.float32([[7, 7, 7]]),
    }

    total = sum_by_unit(flat_layout(), values)

    # Filters: 1 + 2 + 10 + 100 and 3 + 4 + 20 + 200: their own slices only, not the
    # columns of fc1. Neurons: 4 + 1000, 8 + 0, 5 + 3: not the columns of fc2.
    np.testing.assert_array_equal(total, [113, 227, 1004, 8, 8])


def test_absent_tensors_and_buffers_count_nothing() -> None:
    values = {
        "norm.weight": np.float32([1, 2]),
        "norm.running_mean": np.float32([50, 50]),
    }

    np.testing.assert_array_equal(sum_by_unit(flat_layout(), values), [1, 2, 0, 0, 0])


def test_unknown_names_are_an_error() -> None:
    with pytest.raises((AutoFlipError, KeyError)):
        sum_by_unit(mlp_layout(), {"fc9.weight": np.ones((4, 3), np.float32)})


def test_unit_sizes_by_hand() -> None:
    # A filter: 2 weights, scale and shift. A neuron: 4 weights and a bias.
    np.testing.assert_array_equal(unit_sizes(flat_layout()), [4, 4, 5, 5, 5])


def test_unit_scores_are_means_of_own_parameters() -> None:
    guidance = {
        "fc1.weight": np.float32([[0, 0.3, 0.6], [1, 1, 1], [0, 0, 0], [0.5, 0, 0]]),
        "fc1.bias": np.float32([0.1, 1, 0.2, 0.5]),
        "fc2.weight": np.ones((2, 4), np.float32),
        "fc2.bias": np.ones(2, np.float32),
    }

    scores = unit_scores(mlp_layout(), guidance)

    # (.9 + .1) / 4, 4 / 4, .2 / 4, 1 / 4
    np.testing.assert_allclose(scores["fc1"], [0.25, 1, 0.05, 0.25], rtol=1e-6)


def test_unit_scores_take_sums_by_unit_as_they_are() -> None:
    scores = unit_scores(mlp_layout(), {"fc1": np.float32([0.5, 0, 1, 0.25])})

    np.testing.assert_array_equal(scores["fc1"], [0.5, 0, 1, 0.25])


def test_unit_scores_of_bare_parameters() -> None:
    layout = layout_of("raw_parameters")
    guidance = {"w1": np.ones((3, 6), np.float32), "w2": np.ones((6, 2), np.float32)}
    guidance["w1"][:, 2] = [0.0, 0.3, 0.6]

    (scores,) = unit_scores(layout, guidance).values()

    # A unit's own parameters are a column of w1: mean .3 for unit 2, else 1.
    np.testing.assert_allclose(scores, [1, 1, 0.3, 1, 1, 1], rtol=1e-6)


def test_report_by_unit_by_hand() -> None:
    report = {
        "fc1.weight": np.float32([[1, 2, 3], [0, 0, 0], [4, 0, 0], [0, 0, 1]]),
        "fc1.bias": np.float32([1, 0, 1, 0]),
        "fc2.weight": np.full((2, 4), 9, np.float32),
        "fc2.bias": np.full(2, 9, np.float32),
    }

    short = report_by_unit(mlp_layout(), report)

    assert list(short) == ["fc1"]
    np.testing.assert_array_equal(short["fc1"], np.float32([7, 0, 5, 1]))
    assert short["fc1"].dtype == np.float32


def test_split_by_group_by_hand() -> None:
    cut = split_by_group(flat_layout(), np.arange(5))

    np.testing.assert_array_equal(cut["conv"], [0, 1])
    np.testing.assert_array_equal(cut["fc1"], [2, 3, 4])


def naive_sums(layout: Layout, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Add element by element what each unit owns, columns left out."""
    total = np.zeros(layout.num_units)
    for spec in layout.tensors:
        if not spec.trainable:
            continue
        for place, value in np.ndenumerate(arrays[spec.name]):
            for axis, owners in enumerate(spec.owners):
                if owners is None or axis in spec.input_axes:
                    continue
                if owners[place[axis]] >= 0:
                    total[owners[place[axis]]] += value
    return total


@pytest.mark.parametrize("name", ZOO)
def test_sums_and_sizes_match_a_naive_loop(name: str) -> None:
    layout = layout_of(name)
    arrays = random_arrays(layout)
    ones = {t.name: np.ones(t.shape) for t in layout.tensors}

    np.testing.assert_allclose(sum_by_unit(layout, arrays), naive_sums(layout, arrays))
    np.testing.assert_array_equal(unit_sizes(layout), naive_sums(layout, ones))
