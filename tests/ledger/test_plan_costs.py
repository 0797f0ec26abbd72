"""Costs of plans' models: shares of the dense one, measured once."""

from typing import Any

import numpy as np
import pytest
from models import batch, build, layout_of

from flwr_autoflip.errors import AutoFlipError, AutoFlipWarning, WireError
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.ledger import cost as costs
from flwr_autoflip.ledger.cost import CostOf

LAYOUT = layout_of("conv_flat")
KEEP = {"conv1": np.arange(2), "conv2": np.arange(3), "fc1": np.arange(4)}
HALF = Plan(LAYOUT, KEEP)
# conv1 64 * 9 * 2, conv2 16 * 9 * 2 * 3, fc1 12 * 4, fc2 4 * 3
MACS = (1152 + 864 + 48 + 12) / (2304 + 3456 + 192 + 24)
PARAMETERS = (20 + 57 + 52 + 15) / (40 + 222 + 200 + 27)
# Saved a training example: 64 input values, and half of all other values and indices.
SAVED = 4 * (64 + 128 + 32 + 48 + 12 + 4) + 8 * (32 + 12)
MEMORY = (12 * 144 + 32 * SAVED) / (12 * 489 + 32 * 2752)


@pytest.mark.parametrize(
    ("resource", "expected"),
    [("macs", MACS), ("parameters", PARAMETERS), ("memory", MEMORY)],
)
def test_shares_by_hand(resource: Any, expected: float) -> None:
    cost_of = CostOf(build("conv_flat"), batch("conv_flat", 1))

    assert cost_of.ratio(HALF, resource) == pytest.approx(expected, rel=1e-12)
    assert cost_of.ratio(dense_plan(LAYOUT), resource) == 1


def test_single_zeros_take_their_share() -> None:
    cost_of = CostOf(build("conv_flat"), batch("conv_flat", 1))
    masked = Plan(LAYOUT, KEEP, {"fc1.bias": np.zeros(8, np.bool_)})

    assert cost_of.ratio(masked, "parameters") == cost_of.ratio(HALF, "parameters")
    assert cost_of.shape(masked)["zeros"] == 4
    assert cost_of.shape(masked)["units"] == {"conv1": 2, "conv2": 3, "fc1": 4}


def test_a_plan_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cost_of = CostOf(build("conv_flat"), batch("conv_flat", 1))
    cost_of.ratio(HALF, "macs")
    monkeypatch.delattr(costs, "shrink")

    again = cost_of.ratio(Plan(LAYOUT, dict(KEEP)), "macs")

    assert again == pytest.approx(MACS)
    assert cost_of.plan(dense_plan(LAYOUT)) == cost_of.dense()  # nothing to shrink


def test_what_cannot_be_counted_is_said_where_it_is_asked_for() -> None:
    cost_of = CostOf(build("conv_flat"), batch("conv_flat", 1)[:, :, :4])  # too small

    with pytest.warns(AutoFlipWarning, match="unknown; the run goes on"):
        assert cost_of.shape(HALF)["dense_macs"] is None

    assert cost_of.ratio(HALF, "parameters") == pytest.approx(PARAMETERS)
    for resource in ("macs", "memory"):
        with pytest.raises(AutoFlipError, match="of ConvFlat cannot be counted"):
            cost_of.ratio(HALF, resource)  # type: ignore[arg-type]


def test_a_node_that_built_another_model_is_refused() -> None:
    cost_of = CostOf(build("conv_flat"), batch("conv_flat", 1))

    cost_of.check(HALF, 144)
    cost_of.check(HALF, 489)  # behind a mod
    with pytest.raises(
        WireError, match="a model of 300 parameters; its plan's has 144"
    ):
        cost_of.check(HALF, 300)
