"""From scores to units: counts, targets, floors, and what is said where those bind."""

import logging
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from models import flat_layout, layout_of, random_arrays
from rounds import after_round, mlp
from torch import nn

from flwr_autoflip.errors import AutoFlipError, AutoFlipWarning
from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.methods import L1, EFLPrune, Guided, Method, Random
from flwr_autoflip.methods.threshold import Absolute, Compression, Cumulative, UnitCosts
from flwr_autoflip.methods.units import unit_plan

SCORES = {"conv": np.array([0.2, 0.8]), "fc1": np.array([0.5, 0.1, 0.4])}


def chosen(layout: Layout, threshold: Any, round_to: int = 1) -> Plan:
    """Keep the first units of every group."""
    scores = {g.name: -np.arange(g.size) for g in layout.groups}
    return unit_plan(layout, scores, threshold, round_to)


def counts(layout: Layout, threshold: Any, round_to: int = 1) -> list[int]:
    return [len(kept) for kept in chosen(layout, threshold, round_to).keep.values()]


# --- Counts and costs ---


@pytest.mark.parametrize(
    ("threshold", "conv", "fc1"),
    [
        ({"conv": 1, "fc1": 2}, [1], [0, 2]),
        ("conv=1,fc1=2", [1], [0, 2]),
        ({"conv": 9, "fc1": 3}, [0, 1], [0, 1, 2]),  # more than there are
        ({"conv": 0, "fc1": 0}, [1], [0]),  # the best one is kept
        (Absolute(0.9), [1], [0]),
    ],
)
def test_units_by_hand(threshold: Any, conv: list[int], fc1: list[int]) -> None:
    plan = unit_plan(flat_layout(), SCORES, threshold)

    assert {n: kept.tolist() for n, kept in plan.keep.items()} == {
        "conv": conv,
        "fc1": fc1,
    }


@pytest.mark.parametrize(
    "wrong", [{"conv": 1}, {"conv": 1, "fc1": 2, "fc9": 1}, {"conv": 1, "fc1": -1}]
)
def test_counts_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(AutoFlipError, match="units a group must be a number for each"):
        unit_plan(flat_layout(), SCORES, wrong)


def test_costs_by_hand() -> None:
    costs = UnitCosts(flat_layout())
    kept = {"conv": np.array([False, True]), "fc1": np.array([True, False, True])}

    # Parameters: conv 2, norm 2, fc1 2 x 2 + 2, fc2 2: 12 of 26.
    # MACs: conv 2 weights at 2 places, fc1 4, fc2 2: 10 of 8 + 12 + 3.
    assert costs.parameter_ratio(kept) == pytest.approx(12 / 26)
    assert costs.mac_ratio(kept) == pytest.approx(10 / 23)


@pytest.mark.parametrize("threshold", [Cumulative(0.3), Compression(4), Absolute(0.9)])
def test_units_are_rounded_up_to_a_multiple(threshold: Any) -> None:
    layout = layout_of("conv_flat")
    scores = {g.name: np.arange(g.size) / g.size for g in layout.groups}
    exact = unit_plan(layout, scores, threshold)
    plan = unit_plan(layout, scores, threshold, round_to=3)

    for group in layout.groups:
        kept, least = len(plan.keep[group.name]), len(exact.keep[group.name])
        assert kept == min(group.size, -(-least // 3) * 3)
        assert set(exact.keep[group.name]) <= set(plan.keep[group.name])


COUNTS = {"conv1": 2, "conv2": 3, "fc1": 3}
CRITERIA: Any = ("random", "l1", "l2", "similarity")


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


# --- A ratio is of what can shrink ---


@pytest.mark.parametrize(
    ("threshold", "units"),
    [
        ("macs:0.25", 5),  # 75 of 300 MACs
        ("even-macs:0.25", 5),
        ("macs:1", 20),
        ("2x", 9),  # 9 * 16 + 5 of 325 parameters
    ],
)
def test_by_hand_layers_that_cannot_shrink_are_not_counted(
    threshold: str, units: int
) -> None:
    # Without the first layer 60 MACs stay, and each of 20 units takes 10 + 5. It has
    # 11 + 5 parameters, beside 70 that stay and 5 of the outputs.
    assert counts(mlp(6, 10, 20, 5, ignored=("0",)), threshold) == [units]


class Encoder(nn.Module):
    """Two encoder layers; input 12 tokens of 100."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 512, batch_first=True)
        self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.enc(self.embed(x)).mean(1))


@pytest.mark.parametrize("ignored", [(), [f"enc.layers.{i}.self_attn" for i in (0, 1)]])
def test_ignored_attention_does_not_crush_feed_forwards(ignored: Any) -> None:
    model = Encoder()
    layout = trace(model, torch.zeros(1, 12, dtype=torch.long), tuple(ignored))

    plan = L1(macs=0.25).begin(layout, arrays_of(model))[0].plan

    for number in (0, 1):
        assert plan.keep[f"enc.layers.{number}.linear1"].size == 128  # of 512


# --- Floors: a tenth of a group ---


@pytest.mark.parametrize(
    ("threshold", "round_to", "units"),
    [
        *(("macs:0.1", 1, 10), ("even-macs:0.1", 1, 10), ("9x", 1, 10)),
        ("macs:0.1", 16, 16),
        ("0=1", 1, 1),  # who counts units gets them
    ],
)
def test_what_is_in_reach_is_no_surprise(
    threshold: str, round_to: int, units: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert counts(mlp(6, 100, 5), threshold, round_to) == [units]


@pytest.mark.parametrize(
    ("threshold", "why"),
    [
        ("macs:0.02", "asks for 0.02 of the MACs .* a tenth of every group"),
        ("even-macs:0.02", "out of reach: it asks for 0.02"),
        ("40x", "asks for 0.025 of the parameters"),
        (0.99, r"keeps less than a tenth of the units of \['0', '2'\]"),
        ("global-quantile:0.985", r"a tenth of the units of \['0', '2'\]; a tenth is"),
    ],
)
def test_no_group_falls_below_a_tenth_and_that_is_said_once_in_the_log(
    threshold: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "flwr")
    layout = mlp(6, 95, 15, 5)

    for _ in range(3):  # as for every new plan of a run
        with pytest.warns(AutoFlipWarning, match=why) as got:
            assert counts(layout, threshold) == [10, 2]  # a tenth, rounded up

    (warning,) = got
    assert "give units a group as the threshold" in str(warning.message)
    assert caplog.messages == [f"\t> {warning.message}"]


def test_what_is_out_of_reach_names_the_layers_that_stay() -> None:
    with pytest.warns(AutoFlipWarning, match=r"units, \['0'\], are not counted"):
        chosen(mlp(6, 10, 20, 5, ignored=("0",)), "macs:0.02")


def test_a_ratio_of_no_macs_is_refused() -> None:
    dense = flat_layout()
    tensors = tuple(replace(t, macs_per_weight=0.0) for t in dense.tensors)

    with pytest.raises(AutoFlipError, match="no layer that can shrink multiplies"):
        unit_plan(Layout(tensors, dense.groups), SCORES, "macs:0.5")
