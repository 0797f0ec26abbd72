"""Parameters, MACs and memory against hand-computed numbers and plans."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ZOO, batch, build, layout_of, random_plan
from torch import Tensor, nn

from flwr_autoflip.errors import AutoFlipError, AutoFlipWarning, WireError
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.shrink import arrays_of, shrink
from flwr_autoflip.ledger import cost as costs
from flwr_autoflip.ledger.cost import (
    MEMORY_BATCH,
    CostOf,
    count_macs,
    count_parameters,
    count_training_memory,
    measure_cost,
)

# ConvFlat on (1, 8, 8):
#   conv1 1 -> 4, 3 x 3, 8 x 8 places: 64 * 9 * 1 * 4 = 2304
#   conv2 4 -> 6, 3 x 3, 4 x 4 places: 16 * 9 * 4 * 6 = 3456
#   fc1 24 -> 8: 192, fc2 8 -> 3: 24
CONV_FLAT_MACS = 2304 + 3456 + 192 + 24
# 36 + 4, 216 + 6, 192 + 8, 24 + 3
CONV_FLAT_PARAMETERS = 40 + 222 + 200 + 27
# Saved for backward: input 64, after each ReLU 256, 96 and 8, after each pooling 64
# and 24 values, and pooling's 64 and 24 indices of 8 bytes. Views count once.
CONV_FLAT_SAVED = 4 * (64 + 256 + 64 + 96 + 24 + 8) + 8 * (64 + 24)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_costs_by_hand_whatever_the_batch(size: int) -> None:
    model, example = build("conv_flat"), batch("conv_flat", size)
    with torch.no_grad():
        model.fc2.weight[0] = 0.0  # zeros take memory and time all the same

    cost = measure_cost(model, example)

    assert cost.macs == count_macs(model, example) == CONV_FLAT_MACS
    assert cost.parameters == count_parameters(model) == CONV_FLAT_PARAMETERS
    assert cost.bytes == 4 * CONV_FLAT_PARAMETERS
    fixed = 3 * 4 * CONV_FLAT_PARAMETERS  # weights, gradients, momentum
    memory = count_training_memory(model, example)
    assert memory == fixed + MEMORY_BATCH * CONV_FLAT_SAVED


def test_layouts_and_plans_count_the_same_by_hand() -> None:
    assert dense_plan(layout_of("conv_flat")).macs == CONV_FLAT_MACS
    assert layout_of("conv_flat").num_parameters == CONV_FLAT_PARAMETERS


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), masked=st.booleans())
def test_plan_predicts_what_the_small_model_costs(
    name: str, seed: int, masked: bool
) -> None:
    plan = random_plan(layout_of(name), seed, masked)

    small = shrink(build(name), plan)

    assert count_macs(small, batch(name, 1)) == plan.macs
    assert count_macs(small, batch(name, 2)) == plan.macs
    assert count_parameters(small) == plan.without_mask().num_parameters


@pytest.mark.parametrize("name", ZOO)
def test_half_of_the_units_train_in_less_memory(name: str) -> None:
    layout = layout_of(name)
    keep = {g.name: np.arange((g.size + 1) // 2) for g in layout.groups}
    small = shrink(build(name), Plan(layout, keep))

    memory = [count_training_memory(m, batch(name, 1)) for m in (small, build(name))]

    assert 0 < memory[0] < memory[1]
    assert count_macs(build(name), batch(name, 1)) == dense_plan(layout).macs


def test_several_inputs_come_as_a_tuple() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 5), nn.Linear(2, 5)

        def forward(self, a: Tensor, b: Tensor, scale: float) -> Tensor:
            return (self.left(a) + self.right(b)) * scale

    # 3 * 5 + 2 * 5; what is no tensor passes through.
    assert count_macs(Two(), (torch.zeros(4, 3), torch.zeros(4, 2), 2.0)) == 25


def test_counting_leaves_the_model_alone() -> None:
    model = build("batch_norm").train()
    before = arrays_of(model)

    count_macs(model, batch("batch_norm", 1))
    count_training_memory(model, batch("batch_norm", 1))

    assert model.training
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    for name, array in arrays_of(model).items():
        assert (array == before[name]).all(), name


class Looks(nn.Module):
    """Needs values, which meta has not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum().item() >= 0 else x


def test_where_meta_fails_the_cpu_counts_or_says_why_not() -> None:
    assert count_macs(Looks(), torch.ones(2, 3)) == 12
    # Saved: the input of 3 values. Weights, gradients, momentum: 3 x 16 values.
    assert count_training_memory(Looks(), torch.ones(2, 3)) == 4 * (32 * 3 + 3 * 16)
    for count in (count_macs, count_training_memory):
        with pytest.raises(
            AutoFlipError, match=r"Looks cannot be counted: .* on cpu: "
        ):
            count(Looks(), torch.ones(2, 9))


# --- Plans' models ---

LAYOUT = layout_of("conv_flat")
KEEP = {"conv1": np.arange(2), "conv2": np.arange(3), "fc1": np.arange(4)}
HALF = Plan(LAYOUT, KEEP)
# conv1 64 * 9 * 2, conv2 16 * 9 * 2 * 3, fc1 12 * 4, fc2 4 * 3
MACS = (1152 + 864 + 48 + 12) / CONV_FLAT_MACS
PARAMETERS = (20 + 57 + 52 + 15) / CONV_FLAT_PARAMETERS
# Saved an example: 64 input values, and half of all other values and indices.
SAVED = 4 * (64 + 128 + 32 + 48 + 12 + 4) + 8 * (32 + 12)
MEMORY = (12 * 144 + 32 * SAVED) / (12 * 489 + 32 * CONV_FLAT_SAVED)


@pytest.fixture
def cost_of() -> CostOf:
    return CostOf(build("conv_flat"), batch("conv_flat", 1))


@pytest.mark.parametrize(
    ("resource", "expected"),
    [("macs", MACS), ("parameters", PARAMETERS), ("memory", MEMORY)],
)
def test_ratios_by_hand(cost_of: CostOf, resource: Any, expected: float) -> None:
    assert cost_of.ratio(HALF, resource) == pytest.approx(expected, rel=1e-12)
    assert cost_of.ratio(dense_plan(LAYOUT), resource) == 1


def test_single_zeros_count(cost_of: CostOf) -> None:
    masked = Plan(LAYOUT, KEEP, {"fc1.bias": np.zeros(8, np.bool_)})

    shape = cost_of.shape(masked)

    assert cost_of.ratio(masked, "parameters") == cost_of.ratio(HALF, "parameters")
    assert (shape["zeros"], shape["parameters"]) == (4, 144 - 4)
    assert shape["units"] == {"conv1": 2, "conv2": 3, "fc1": 4}


def test_a_plan_is_measured_once(
    cost_of: CostOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost_of.ratio(HALF, "macs")
    monkeypatch.delattr(costs, "shrink")

    assert cost_of.ratio(Plan(LAYOUT, dict(KEEP)), "macs") == pytest.approx(MACS)
    assert cost_of.plan(dense_plan(LAYOUT)) == cost_of.dense()  # nothing to shrink


def test_what_cannot_be_counted_is_said_where_it_is_asked_for() -> None:
    cost_of = CostOf(build("conv_flat"), batch("conv_flat", 1)[:, :, :4])  # too small

    with pytest.warns(AutoFlipWarning, match="unknown; the run goes on"):
        assert cost_of.shape(HALF)["dense_macs"] is None

    assert cost_of.ratio(HALF, "parameters") == pytest.approx(PARAMETERS)
    for resource in ("macs", "memory"):
        with pytest.raises(AutoFlipError, match="of ConvFlat cannot be counted"):
            cost_of.ratio(HALF, resource)  # type: ignore[arg-type]


def test_a_node_that_built_another_model_is_refused(cost_of: CostOf) -> None:
    cost_of.check(HALF, 144)
    cost_of.check(HALF, 489)  # behind a mod
    with pytest.raises(WireError, match="300 parameters; its plan's has 144"):
        cost_of.check(HALF, 300)
