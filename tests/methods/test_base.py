"""What policies over unit scores share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from models import flat_layout, layout_of, mlp_layout, random_arrays

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.methods import (
    AutoFlipPolicy,
    Dense,
    EflPrune,
    L1Units,
    Policy,
    PruneFl,
    RandomUnits,
    Structured,
)
from flwr_autoflip.methods.guidance import Report
from flwr_autoflip.methods.policy import (
    keep_least,
    parse_units,
    unit_costs,
    unit_plan,
)
from flwr_autoflip.methods.threshold import (
    Absolute,
    Compression,
    MacShare,
    Mass,
    Quantile,
)

SCORES = {"conv": np.array([0.2, 0.8]), "fc1": np.array([0.5, 0.1, 0.4])}


def test_counts_a_group_keep_the_best() -> None:
    plan = unit_plan(flat_layout(), SCORES, {"conv": 1, "fc1": 2})

    np.testing.assert_array_equal(plan.keep["conv"], [1])
    np.testing.assert_array_equal(plan.keep["fc1"], [0, 2])


def test_threshold_keeps_by_score() -> None:
    plan = unit_plan(flat_layout(), SCORES, Absolute(0.4))

    np.testing.assert_array_equal(plan.keep["conv"], [1])
    np.testing.assert_array_equal(plan.keep["fc1"], [0, 2])


@pytest.mark.parametrize("threshold", [Absolute(0.9), {"conv": 0, "fc1": 0}])
def test_best_unit_of_an_emptied_group_stays(threshold: Any) -> None:
    plan = unit_plan(flat_layout(), SCORES, threshold)

    np.testing.assert_array_equal(plan.keep["conv"], [1])
    np.testing.assert_array_equal(plan.keep["fc1"], [0])


def test_more_than_there_are_keeps_all() -> None:
    plan = unit_plan(flat_layout(), SCORES, {"conv": 9, "fc1": 3})

    assert plan.num_parameters == flat_layout().num_parameters


@pytest.mark.parametrize(
    "counts",
    [{"conv": 1}, {"conv": 1, "fc1": 2, "fc9": 1}, {"conv": 1, "fc1": -1}],
    ids=["missing", "unknown", "negative"],
)
def test_counts_that_do_not_fit_are_refused(counts: dict[str, int]) -> None:
    with pytest.raises(AutoFlipError):
        unit_plan(flat_layout(), SCORES, counts)


def test_keep_least_touches_narrow_groups_only() -> None:
    kept = {
        "conv": np.array([False, False]),
        "fc1": np.array([False, True, False]),
    }

    mended = keep_least(kept, SCORES, {"conv": 1, "fc1": 1})

    np.testing.assert_array_equal(mended["conv"], [False, True])
    np.testing.assert_array_equal(mended["fc1"], [False, True, False])


def test_unit_costs_by_hand() -> None:
    costs = unit_costs(flat_layout())
    kept = {"conv": np.array([False, True]), "fc1": np.array([True, False, True])}

    # Parameters: conv 2, norm 2, fc1 2 x 2 + 2, fc2 2: 12 of 26.
    # MACs: conv 2 weights at 2 places, fc1 4, fc2 2: 10 of 8 + 12 + 3.
    assert costs[Compression](kept) == pytest.approx(12 / 26)
    assert costs[MacShare](kept) == pytest.approx(10 / 23)


def test_targets_by_hand() -> None:
    layout = mlp_layout()
    scores = {"fc1": np.array([0.1, 0.4, 0.2, 0.3])}

    compressed = unit_plan(layout, scores, Compression(1.3))
    cheaper = unit_plan(layout, scores, MacShare(0.74))

    # n neurons have 6n + 2 parameters of 26 (20 = 26 / 1.3) and cost 5n of 20 MACs.
    np.testing.assert_array_equal(compressed.keep["fc1"], [1, 2, 3])
    np.testing.assert_array_equal(cheaper.keep["fc1"], [1, 3])


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        ("conv1=8,fc1=32", {"conv1": 8, "fc1": 32}),
        (" conv1 = 8 , block.0=2 ", {"conv1": 8, "block.0": 2}),
        ({"conv1": 8}, {"conv1": 8}),
        ("mass:0.7", Mass()),
        ("quantile:0.5", Quantile(0.5)),
        (0.3, Absolute(0.3)),
    ],
)
def test_units_are_read(value: Any, parsed: Any) -> None:
    assert parse_units(value) == parsed


@pytest.mark.parametrize("value", ["conv1=many", "conv1=8,fc1", "conv1=8=9", "a=1.5"])
def test_units_that_cannot_be_read_are_refused(value: str) -> None:
    with pytest.raises(AutoFlipError):
        parse_units(value)


def test_units_are_rounded_up_to_a_multiple() -> None:
    layout = layout_of("conv_flat")
    scores = {g.name: np.arange(g.size) / g.size for g in layout.groups}

    for threshold in (Mass(0.3), Compression(4), Absolute(0.9)):
        exact = unit_plan(layout, scores, threshold)
        plan = unit_plan(layout, scores, threshold, round_to=3)

        for group in layout.groups:
            kept, least = len(plan.keep[group.name]), len(exact.keep[group.name])
            assert kept == min(group.size, -(-least // 3) * 3)
            assert set(exact.keep[group.name]) <= set(plan.keep[group.name])


# --- Scores for nodes that carry less ---


@pytest.mark.parametrize(
    "policy",
    [Dense(), PruneFl(), Structured(), EflPrune("magnitude", Compression(2))],
    ids=lambda policy: type(policy).__name__,
)
def test_units_are_ranked_by_size_unless_a_policy_knows_more(policy: Policy) -> None:
    weights = {
        "fc1.weight": np.float32([[1, -1, 1], [0, 0, 0], [-5, 0, 0], [0.5, 0.5, -0.5]]),
        "fc1.bias": np.float32([0, -9, 1, 0]),
        "fc2.weight": np.full((2, 4), 99, np.float32),  # no unit's own parameters
        "fc2.bias": np.zeros(2, np.float32),
    }

    scores = policy.rank_units(3, mlp_layout(), weights, [])

    np.testing.assert_allclose(scores["fc1"], [3 / 4, 9 / 4, 6 / 4, 1.5 / 4])


COUNTS = {"conv1": 2, "conv2": 3, "fc1": 3}


@pytest.mark.parametrize(
    "policy",
    [
        AutoFlipPolicy(Quantile(0.5)),
        AutoFlipPolicy(Quantile(0.5), normalization="client"),
        RandomUnits(COUNTS, seed=4),
        L1Units(COUNTS),
        *(EflPrune(kind, COUNTS) for kind in ("random", "l1", "l2", "similarity")),
    ],
    ids=str,
)
def test_a_plan_keeps_the_units_that_its_policy_ranks_first(policy: Policy) -> None:
    layout = layout_of("conv_flat")
    weights = random_arrays(layout)
    reports: Sequence[Report] = [random_arrays(layout, seed) for seed in range(3)]

    plan = policy(5, layout, weights, reports)
    scores = policy.rank_units(5, layout, weights, reports)

    for name, kept in plan.keep.items():
        gone = np.setdiff1d(np.arange(len(scores[name])), kept)
        assert scores[name].shape == (len(kept) + len(gone),)
        assert scores[name][kept].min() >= scores[name][gone].max()
