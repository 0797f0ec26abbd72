"""Gradients behind the values: summed, packed, parted, refused."""

import numpy as np
import pytest
import torch
from models import mlp_layout, random_arrays
from torch import nn

from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.pack import pack
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import hold_mask, load_arrays_inplace, shrink
from flwr_autoflip.wire.probe import (
    append_probe,
    probe_size,
    split_probe,
    sum_gradients,
)

LAYOUT = mlp_layout()
MASK = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]], bool)
PLAN = Plan(LAYOUT, {"fc1": np.array([0, 2])}, {"fc1.weight": MASK})
"""2 of 4 neurons; of fc1.weight's 6 values left, one in each row went."""


def mlp() -> nn.Module:
    model = nn.Module()
    model.fc1, model.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)
    load_arrays_inplace(model, random_arrays(LAYOUT))
    return model


def test_gradients_of_all_steps_add_up_also_where_a_mask_zeroes_them() -> None:
    small = shrink(mlp(), PLAN)
    optimizer = torch.optim.SGD(small.parameters(), lr=0.0)

    with hold_mask(small, PLAN), sum_gradients(small) as sums:
        for factor in (2.0, 3.0):
            optimizer.zero_grad()
            (factor * small.fc1.weight.sum()).backward()
            optimizer.step()
            masked = small.fc1.weight.grad

    np.testing.assert_array_equal(sums["fc1.weight"], np.full((2, 3), 5.0))
    np.testing.assert_array_equal(masked, [[3, 0, 3], [0, 3, 3]])
    assert set(sums) == {"fc1.weight"}  # nothing reached the others


def test_hooks_leave_with_the_context() -> None:
    model = nn.Linear(2, 1)
    with sum_gradients(model) as sums:
        pass

    model.weight.sum().backward()

    assert sums == {}


def test_frozen_parameters_are_left_alone() -> None:
    model = nn.Linear(2, 1)
    model.bias.requires_grad = False

    with sum_gradients(model) as sums:
        model(torch.ones(1, 2)).sum().backward()

    assert set(sums) == {"weight"}


def test_probe_by_hand() -> None:
    values = pack(random_arrays(LAYOUT), PLAN)
    sums = {
        "fc1.weight": torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.5, -1.0]]),
        "fc2.bias": torch.tensor([-4.0, 0.0]),
    }

    sent = append_probe(values, sums, PLAN)
    trained, report = split_probe(sent, PLAN)

    # values: fc1 6 - 2 and 2, fc2 2 x 2 and 2; gradients: two more, at what went.
    assert (PLAN.num_values, probe_size(PLAN)) == (12, 14)
    assert sent.shape == (26,)
    np.testing.assert_array_equal(sent[12:18], [1, 2, 0, 3, 0.5, 1])
    np.testing.assert_array_equal(trained, values)
    np.testing.assert_array_equal(
        report["fc1.weight"], [[1, 4, 0], [0, 0, 0], [9, 0.25, 1], [0, 0, 0]]
    )
    np.testing.assert_array_equal(report["fc2.bias"], [16, 0])
    np.testing.assert_array_equal(report["fc1.bias"], np.zeros(4))
    np.testing.assert_array_equal(report["fc2.weight"], np.zeros((2, 4)))


def test_bad_probes_are_refused() -> None:
    good = append_probe(pack(random_arrays(LAYOUT), PLAN), {}, PLAN)

    def changed(place: int, value: float) -> np.ndarray:
        bad = good.copy()
        bad[place] = value
        return bad

    for values, message in (
        (good[:-1], "expected 12 values and 14 gradients"),
        (good[:12], "expected 12 values and 14 gradients"),
        (changed(20, -1.0), "at least 0 and finite"),
        (changed(20, np.nan), "at least 0 and finite"),
        (changed(20, np.inf), "at least 0 and finite"),
        (changed(20, 1e30), "at least 0 and finite"),  # its square overflows
        (changed(3, np.nan), "1 of 12 are NaN"),
        (good.astype(np.float64), "dtype float64"),
    ):
        with pytest.raises(WireError, match=message):
            split_probe(values, PLAN)
