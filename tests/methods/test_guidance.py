"""Eqs. 7 and 10 by hand, robust means, and sums by unit against a naive loop."""

import weakref
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import ZOO, flat_layout, layout_of, mlp_layout, random_arrays

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.methods.guidance import (
    Report,
    client_guidance,
    deviation,
    layer_guidance,
    parse_aggregator,
    report_by_unit,
    sum_by_unit,
    trimmed_mean,
    unit_scores,
    unit_sizes,
)

# --- Eqs. 7 and 10 ---


def test_deviation_by_hand() -> None:
    squared = deviation(
        np.float32([[1, -2], [0.5, 3]]), np.float32([[1.5, -2], [-0.5, 1]])
    )

    # (1 - 1.5)^2 = .25, 0, (0.5 + 0.5)^2 = 1, (3 - 1)^2 = 4
    np.testing.assert_array_equal(squared, np.float32([[0.25, 0], [1, 4]]))
    assert squared.dtype == np.float32


THREE = [
    {"w": np.float32([0, 4, 2, 7]), "b": np.float32([[1], [0]])},
    {"w": np.float32([1, 2, 2, 0]), "b": np.float32([[3], [0]])},
    {"w": np.float32([5, 0, 2, 0]), "b": np.float32([[2], [0]])},
]
"""Three explorers' deviations of two tensors."""


def test_client_guidance_by_hand() -> None:
    guidance = client_guidance(THREE)

    # Coordinate 0: (0, 1, 5) -> (0, .2, 1), mean .4
    # 1: (4, 2, 0) -> (1, .5, 0), mean .5; 2: nobody differs, 0/0 = 0
    # 3: (7, 0, 0) -> (1, 0, 0), mean 1/3
    np.testing.assert_allclose(guidance["w"], [0.4, 0.5, 0, 1 / 3], rtol=1e-6)
    # (1, 3, 2) -> (0, 1, .5), mean .5; nobody moved: 0/0 = 0
    np.testing.assert_allclose(guidance["b"], [[0.5], [0]], rtol=1e-6)
    assert guidance["w"].dtype == np.float32


def test_layer_guidance_by_hand() -> None:
    guidance = layer_guidance(THREE)

    # Means (2, 2, 2, 7/3): lowest 2, span 1/3 -> (0, 0, 0, 1). Were each node's min-max
    # taken first, the first coordinate would not be 0.
    np.testing.assert_allclose(guidance["w"], [0, 0, 0, 1], atol=1e-6)
    # Means (2, 0) -> (1, 0)
    np.testing.assert_allclose(guidance["b"], [[1], [0]], rtol=1e-6)
    assert guidance["b"].dtype == np.float32


@settings(deadline=None)
@given(st.data())
def test_guidance_matches_a_naive_loop(data: st.DataObject) -> None:
    k = data.draw(st.integers(2, 5))
    values = data.draw(hnp.arrays(np.float32, (k, 4), elements=st.integers(0, 50)))
    trim = data.draw(st.sampled_from([0, 0.25, 0.5]))
    name = {0: "mean", 0.5: "median"}.get(trim, f"trimmed-mean:{trim}")
    reports = [{"w": row} for row in values]
    by_client = np.zeros(4)
    for i, column in enumerate(values.T.astype(float)):
        span = column.max() - column.min()
        by_client[i] = ((column - column.min()) / span).mean() if span else 0
    out = min(int(trim * k), (k - 1) // 2)
    means = np.sort(values.astype(float), axis=0)[out : k - out].mean(axis=0)
    by_layer = (means - means.min()) / (np.ptp(means) or 1)

    np.testing.assert_allclose(client_guidance(reports)["w"], by_client, atol=1e-6)
    with patch("flwr_autoflip.methods.guidance.STACK", data.draw(st.integers(1, 20))):
        found = layer_guidance(reports, name)["w"]
    np.testing.assert_allclose(found, by_layer, atol=1e-6)


def test_reports_are_read_one_array_at_a_time() -> None:
    read: list[tuple[int, str]] = []

    class Lazy(dict[str, np.ndarray]):
        """Notes when it is read, and that what was read before is gone."""

        held: list[weakref.ref[np.ndarray]] = []  # noqa: RUF012 - of all

        def __init__(self, node: int) -> None:
            super().__init__(a=np.float32([1, 2]), b=np.float32([3, 1]))
            self.node = node

        def __getitem__(self, name: str) -> np.ndarray:
            assert sum(array() is not None for array in self.held) <= 2
            made = super().__getitem__(name) * np.float32(self.node)
            self.held.append(weakref.ref(made))
            read.append((self.node, name))
            return made

    layer_guidance([Lazy(node) for node in range(1, 6)], equal_scale=True)
    layer_guidance([Lazy(node) for node in range(1, 6)], "median", equal_scale=True)

    names = [name for _, name in read]
    assert names[: len(names) // 2].index("b") > 4  # tensor by tensor
    assert {node for node, _ in read} == set(range(1, 6))


def test_too_few_reports_are_errors() -> None:
    with pytest.raises(AutoFlipError, match="at least one node's report"):
        layer_guidance([])
    with pytest.raises(AutoFlipError, match="compares nodes, and 1 reported"):
        client_guidance(THREE[:1])


# --- Robust means ---


def test_trimmed_mean_by_hand() -> None:
    values = np.float32([[1, 9], [2, 0], [3, 0], [4, 0], [100, 0]])

    np.testing.assert_array_equal(trimmed_mean(values, 0.0), [22, 1.8])
    np.testing.assert_array_equal(trimmed_mean(values, 0.2), [3, 0])
    np.testing.assert_array_equal(trimmed_mean(values, 0.19), [22, 1.8])  # none of five
    np.testing.assert_array_equal(trimmed_mean(values[:4], 0.5), [2.5, 0])


@given(st.data())
def test_what_is_trimmed_cannot_leave_the_honest_values(data: st.DataObject) -> None:
    honest = data.draw(hnp.arrays(np.float32, (8, 3), elements=st.integers(0, 50)))
    bad = data.draw(hnp.arrays(np.float32, (2, 3), elements=st.integers(0, 2**20)))

    found = trimmed_mean(np.concatenate([honest, bad]), 0.2)

    assert (honest.min(0) <= found).all()
    assert (found <= honest.max(0)).all()


def test_aggregators() -> None:
    for text, trim in {"mean": 0.0, "median": 0.5, "trimmed-mean:0.1": 0.1}.items():
        assert parse_aggregator(text) == trim
    wrong = ("", "trimmed-mean", "trimmed-mean:0", "trimmed-mean:0.5", "mean:0.1", None)
    for other in wrong:
        with pytest.raises(AutoFlipError, match="aggregator must be 'mean'"):
            parse_aggregator(other)  # type: ignore[arg-type]


def test_equal_scale_by_hand() -> None:
    small, large = {"w": np.float32([1, 3])}, {"w": np.float32([600, 200])}
    still, tiny = {"w": np.float32([0, 0])}, {"w": np.float32([1e-45, 0])}

    def scaled(*reports: Report) -> list[float]:
        return layer_guidance(reports, equal_scale=True)["w"].tolist()

    # Means 1: (.5, 1.5) and (1.5, .5), so that both coordinates are alike.
    assert layer_guidance([small, large])["w"].tolist() == [1, 0]
    assert scaled(small, large) == [0, 0]
    assert scaled(small, still) == [0, 1]  # one that did not move counts nothing
    assert np.isfinite(scaled(tiny, small)).all()


@settings(deadline=None)
@given(st.data())
def test_no_scale_of_one_node_changes_guidance(data: st.DataObject) -> None:
    values = data.draw(hnp.arrays(np.float32, (4, 6), elements=st.integers(0, 50)))
    reports = [{"w": row} for row in values]
    power = data.draw(st.integers(-20, 40))
    loud = [*reports[:3], {"w": np.ldexp(values[3], power)}]
    name = data.draw(st.sampled_from(["mean", "trimmed-mean:0.25", "median"]))

    found, expected = (
        layer_guidance(some, name, equal_scale=True)["w"] for some in (loud, reports)
    )

    np.testing.assert_allclose(found, expected, atol=1e-6)


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


def test_unknown_names_are_an_error() -> None:
    with pytest.raises(AutoFlipError, match="no tensor named"):
        sum_by_unit(mlp_layout(), {"fc9.weight": np.ones((4, 3), np.float32)})


def test_unit_scores_are_means_of_own_parameters_and_reports_their_sums() -> None:
    values = {
        "fc1.weight": np.float32([[0, 0.3, 0.6], [1, 1, 1], [0, 0, 0], [0.5, 0, 0]]),
        "fc1.bias": np.float32([0.1, 1, 0.2, 0.5]),
        "fc2.weight": np.ones((2, 4), np.float32),
        "fc2.bias": np.ones(2, np.float32),
    }

    scores = unit_scores(mlp_layout(), values)
    sums = report_by_unit(mlp_layout(), values)

    # (.9 + .1) / 4, 4 / 4, .2 / 4, 1 / 4
    np.testing.assert_allclose(scores["fc1"], [0.25, 1, 0.05, 0.25], rtol=1e-6)
    assert list(sums) == ["fc1"]
    np.testing.assert_allclose(sums["fc1"], [1, 4, 0.2, 1], rtol=1e-6)
    assert sums["fc1"].dtype == np.float32
    # What comes by unit is taken as it is.
    np.testing.assert_array_equal(unit_scores(mlp_layout(), sums)["fc1"], sums["fc1"])


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
