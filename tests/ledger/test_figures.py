"""Figures for people: amounts, the metric to show, histograms of importance."""

import math

import numpy as np
import pytest
from federation import EXAMPLE, TinyNet
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_autoflip import Plan, trace
from flwr_autoflip.ledger.amounts import amount, percent, ratio
from flwr_autoflip.ledger.headline import headline
from flwr_autoflip.ledger.histogram import BINS, unit_histograms


@settings(max_examples=100, deadline=None)
@given(st.floats(1, 1e15))
def test_amounts_are_within_half_a_percent(value: float) -> None:
    number, _, prefix = amount(value).partition(" ")

    factor = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}[prefix]
    assert math.isclose(float(number) * factor, value, rel_tol=0.005, abs_tol=0.005)


def test_amounts_may_be_negative_or_unknown() -> None:
    assert amount(-1_250_000, "B") == "-1.25 MB"
    assert percent(-0.25) == "-25 %"
    assert ratio(1, 4) == 0.25
    assert ratio(None, 4) is ratio(1, None) is ratio(1, 0) is None


@pytest.mark.parametrize(
    ("metrics", "name"),
    [
        ({"loss": 0.1, "accuracy": 0.2, "top1": 0.3}, "top1"),
        ({"loss": 0.1, "Val-Accuracy": 0.2}, "Val-Accuracy"),
        ({"dense-top1": 0.3, "loss": 0.1}, "loss"),
        ({"text": "x", "perplexity": 3}, "perplexity"),
        ({"dense-loss": 0.1, "text": "x"}, None),
        ({}, None),
    ],
)
def test_accuracy_comes_first(metrics: dict[str, object], name: str | None) -> None:
    found = headline(metrics)

    assert found == (None if name is None else (name, metrics[name]))


def test_units_are_counted_by_score() -> None:
    layout = trace(TinyNet(), EXAMPLE)
    plan = Plan(layout, {"conv": np.array([1, 2, 5]), "fc1": np.arange(8)})
    conv = np.array([0.0, 0.19, 0.4, 0.0, 0.01, 0.2])

    found = unit_histograms(plan, {"conv": conv, "fc1": np.zeros(8)})

    # conv: bins of 0.02; 0.4 is in the last one
    kept, pruned = [0] * BINS, [0] * BINS
    kept[9] = kept[19] = kept[10] = 1
    pruned[0] = 3
    assert found["conv"] == {"top": 0.4, "kept": kept, "pruned": pruned}
    none = [0] * (BINS - 1)
    assert found["fc1"] == {"top": 0, "kept": [8, *none], "pruned": [0, *none]}
