"""Parameters and MACs against hand-computed numbers, plans and THOP."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ZOO, batch, build, layout_of, random_plan
from torch import Tensor, nn

from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.shrink import arrays_of, shrink
from flwr_autoflip.ledger.cost import (
    MEMORY_BATCH,
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


def test_macs_by_hand() -> None:
    assert count_macs(build("conv_flat"), batch("conv_flat", 1)) == CONV_FLAT_MACS


def test_plan_counts_the_same_macs_by_hand() -> None:
    assert dense_plan(layout_of("conv_flat")).macs == CONV_FLAT_MACS


@pytest.mark.parametrize("size", [2, 5])
def test_macs_are_of_one_example_whatever_the_batch(size: int) -> None:
    assert count_macs(build("conv_flat"), batch("conv_flat", size)) == CONV_FLAT_MACS


def test_parameters_by_hand() -> None:
    assert count_parameters(build("conv_flat")) == CONV_FLAT_PARAMETERS
    assert layout_of("conv_flat").num_parameters == CONV_FLAT_PARAMETERS


def test_single_zeros_cost_like_any_other_weight() -> None:
    model = build("conv_flat")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model.fc2.weight[0] = 0.0

    cost = measure_cost(model, batch("conv_flat", 1))

    assert cost.parameters == CONV_FLAT_PARAMETERS  # zeros take memory all the same
    assert cost.macs == CONV_FLAT_MACS  # and time
    assert cost.bytes == 4 * CONV_FLAT_PARAMETERS


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
def test_dense_plan_predicts_what_the_model_costs(name: str) -> None:
    assert count_macs(build(name), batch(name, 1)) == dense_plan(layout_of(name)).macs


def test_several_inputs_come_as_a_tuple() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Linear(3, 5)
            self.right = nn.Linear(2, 5)

        def forward(self, a: Tensor, b: Tensor, scale: float) -> Tensor:
            return (self.left(a) + self.right(b)) * scale

    model = Two()

    # 3 * 5 + 2 * 5; what is no tensor passes through.
    assert count_macs(model, (torch.zeros(4, 3), torch.zeros(4, 2), 2.0)) == 25


def test_counting_leaves_the_model_alone() -> None:
    model = build("batch_norm").train()
    before = arrays_of(model)

    count_macs(model, batch("batch_norm", 1))
    count_training_memory(model, batch("batch_norm", 1))

    assert model.training
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    for name, array in arrays_of(model).items():
        assert (array == before[name]).all(), name


def test_training_memory_by_hand() -> None:
    # Saved for backward: input 64, after each ReLU 256, 96 and 8, after each pooling
    # 64 and 24 values, and pooling's 64 and 24 indices of 8 bytes. Views count once.
    saved = 4 * (64 + 256 + 64 + 96 + 24 + 8) + 8 * (64 + 24)
    fixed = 3 * 4 * CONV_FLAT_PARAMETERS  # weights, gradients, momentum

    for size in (1, 2):
        memory = count_training_memory(build("conv_flat"), batch("conv_flat", size))
        assert memory == fixed + MEMORY_BATCH * saved


@pytest.mark.parametrize("name", ZOO)
def test_half_of_the_units_train_in_less_memory(name: str) -> None:
    layout = layout_of(name)
    keep = {g.name: np.arange((g.size + 1) // 2) for g in layout.groups}
    small = shrink(build(name), Plan(layout, keep))

    memory = [count_training_memory(m, batch(name, 1)) for m in (small, build(name))]

    assert 0 < memory[0] < memory[1]
