"""What methods over unit scores share."""

from typing import Any

import numpy as np
import pytest
import torch
from models import flat_layout, layout_of, random_arrays
from rounds import after_round
from torch import nn

from flwr_autoflip.errors import AutoFlipError, AutoFlipWarning
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.methods import L1, EFLPrune, Guided, Method, Random
from flwr_autoflip.methods.threshold import (
    Absolute,
    Compression,
    Cumulative,
    MacRatio,
    unit_costs,
)
from flwr_autoflip.methods.units import unit_plan

COUNTS = {"conv1": 2, "conv2": 3, "fc1": 3}
CRITERIA: Any = ("random", "l1", "l2", "similarity")
SCORES = {"conv": np.array([0.2, 0.8]), "fc1": np.array([0.5, 0.1, 0.4])}


def test_counts_a_group_keep_the_best() -> None:
    plan = unit_plan(flat_layout(), SCORES, {"conv": 1, "fc1": 2})

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


def test_unit_costs_by_hand() -> None:
    costs = unit_costs(flat_layout())
    kept = {"conv": np.array([False, True]), "fc1": np.array([True, False, True])}

    # Parameters: conv 2, norm 2, fc1 2 x 2 + 2, fc2 2: 12 of 26.
    # MACs: conv 2 weights at 2 places, fc1 4, fc2 2: 10 of 8 + 12 + 3.
    assert costs[Compression](kept) == pytest.approx(12 / 26)
    assert costs[MacRatio](kept) == pytest.approx(10 / 23)


def test_units_are_rounded_up_to_a_multiple() -> None:
    layout = layout_of("conv_flat")
    scores = {g.name: np.arange(g.size) / g.size for g in layout.groups}

    for threshold in (Cumulative(0.3), Compression(4), Absolute(0.9)):
        exact = unit_plan(layout, scores, threshold)
        plan = unit_plan(layout, scores, threshold, round_to=3)

        for group in layout.groups:
            kept, least = len(plan.keep[group.name]), len(exact.keep[group.name])
            assert kept == min(group.size, -(-least // 3) * 3)
            assert set(exact.keep[group.name]) <= set(plan.keep[group.name])


@pytest.mark.parametrize(
    "method",
    [
        Guided(threshold=COUNTS),
        Random(threshold=COUNTS, seed=4),
        L1(threshold=COUNTS),
        *(EFLPrune(kind, threshold=COUNTS) for kind in CRITERIA),
    ],
    ids=lambda method: f"{type(method).__name__}-{getattr(method, 'criterion', '')}",
)
def test_a_plan_keeps_the_units_that_its_method_ranks_first(
    method: Method[Any],
) -> None:
    layout = layout_of("conv_flat")
    weights = random_arrays(layout)
    reports = [random_arrays(layout, seed) for seed in range(3)]

    state, _ = after_round(method, layout, weights, reports)
    if not isinstance(method, Guided):
        state, _ = method.begin(layout, weights)
    scores = method.importance(state, weights)

    for name, kept in state.plan.keep.items():
        pruned = np.setdiff1d(np.arange(len(scores[name])), kept)
        assert len(kept) == COUNTS[name]
        assert scores[name][kept].min() >= scores[name][pruned].max()


# --- Floors: a tenth of a group ---


def test_a_threshold_that_asks_for_less_than_a_tenth_keeps_that_and_warns() -> None:
    layers = (nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU())
    model = nn.Sequential(*layers, nn.Linear(20, 5))
    layout = trace(model, torch.zeros(1, 6))
    scores = {"0": np.arange(40) / 40, "2": np.arange(20) / 20}

    for threshold, why in {
        "macs:0.01": "asks for 0.01 of the MACs",
        "even-macs:0.01": "out of reach",
        "100x": "asks for 0.01 of the parameters",
        0.99: r"keeps less than a tenth of the units of \['0', '2'\]",
    }.items():
        with pytest.warns(AutoFlipWarning, match=why):
            plan = unit_plan(layout, scores, threshold)
        assert {name: len(kept) for name, kept in plan.keep.items()} == {"0": 4, "2": 2}
    counted = unit_plan(layout, scores, {"0": 1, "2": 1})  # counts are not lifted
    assert counted.alive.sum() == 2
    ignored = trace(model, torch.zeros(1, 6), ("0",))
    with pytest.warns(
        AutoFlipWarning, match=r"prunable units, \['0'\], are not counted"
    ):
        unit_plan(ignored, {"2": scores["2"]}, "macs:0.05")
