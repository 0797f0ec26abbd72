"""Units come in; the network computes what it did."""

import numpy as np
import pytest
import torch
from models import (
    ZOO,
    batch,
    build,
    flat_layout,
    layout_of,
    mlp_layout,
    random_arrays,
    random_plan,
)
from torch import nn

from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import load_arrays_inplace, shrink
from flwr_autoflip.methods.grow import grow


def test_by_hand() -> None:
    layout = mlp_layout()
    before = Plan(layout, {"fc1": np.array([1])})
    after = Plan(layout, {"fc1": np.array([1, 3])})
    arrays = {
        "fc1.weight": np.ones((4, 3), np.float32),
        "fc1.bias": np.ones(4, np.float32),
        "fc2.weight": np.float32([[1, 2, 3, 4], [5, 6, 7, 8]]),
        "fc2.bias": np.ones(2, np.float32),
    }

    grown = grow(arrays, before, after)

    # fc2 hears of unit 3 for the first time; nobody asks columns 0 and 2.
    np.testing.assert_array_equal(grown["fc2.weight"], [[1, 2, 3, 0], [5, 6, 7, 0]])
    for name in ("fc1.weight", "fc1.bias", "fc2.bias"):
        np.testing.assert_array_equal(grown[name], 1)
    assert arrays["fc2.weight"][0, 3] == 4  # the caller's are left alone


def larger(plan: Plan, seed: int) -> Plan:
    """Add random units."""
    other = random_plan(plan.layout, seed)
    keep = {name: np.union1d(plan.keep[name], other.keep[name]) for name in plan.keep}
    return Plan(plan.layout, keep)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_computed_does_not_change(name: str, seed: int) -> None:
    layout, model = layout_of(name), build(name, seed).eval()
    before = random_plan(layout, seed)
    after = larger(before, seed + 100)
    arrays = {k: v.numpy().copy() for k, v in model.state_dict().items()}

    grown = grow(arrays, before, after)

    with torch.no_grad():
        smaller = deployed(model, before, arrays)(batch(name))
        same = deployed(model, after, grown)(batch(name))
    np.testing.assert_allclose(same, smaller, rtol=1e-4, atol=1e-5)


def test_left_as_they_are_weights_would_change_it() -> None:
    layout, model = layout_of("sequential"), build("sequential").eval()
    before, arrays = random_plan(layout, 0), random_arrays(layout)

    with torch.no_grad():
        smaller = deployed(model, before, arrays)(batch("sequential"))
        without = deployed(model, larger(before, 100), arrays)(batch("sequential"))

    assert not np.allclose(without, smaller, rtol=1e-4, atol=1e-5)


def deployed(model: nn.Module, plan: Plan, arrays: dict[str, np.ndarray]) -> nn.Module:
    small = shrink(model, plan)
    kept = {k: plan.take(k, v) if k in plan.index else v for k, v in arrays.items()}
    load_arrays_inplace(small, kept)
    return small.eval()


def test_new_units_start_as_they_would_in_a_network_of_that_size() -> None:
    layout = flat_layout()
    before = Plan(layout, {"conv": np.array([1]), "fc1": np.array([0])})
    after = Plan(layout, {"conv": np.array([1]), "fc1": np.array([0, 2])})
    arrays = {t.name: np.ones(t.shape, t.dtype) for t in layout.tensors}

    grown = grow(arrays, before, after)

    # Row 2 of fc1 is new and reads 2 of 4 columns; row 0 stays as it was trained.
    root = np.sqrt(2)
    np.testing.assert_allclose(
        grown["fc1.weight"], [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, root, root]], rtol=1e-6
    )
    np.testing.assert_allclose(grown["fc2.weight"], [[1, 1, 0]])
    for name in ("conv.weight", "norm.weight", "fc1.bias"):
        np.testing.assert_array_equal(grown[name], 1)

    as_they_were = grow(arrays, before, after, rescale=False)
    np.testing.assert_array_equal(as_they_were["fc1.weight"], 1)
    np.testing.assert_array_equal(as_they_were["fc2.weight"], grown["fc2.weight"])


def test_nothing_new_changes_nothing() -> None:
    layout = flat_layout()
    plan, arrays = random_plan(layout, 3), random_arrays(layout)

    for name, array in grow(arrays, plan, plan).items():
        np.testing.assert_array_equal(array, arrays[name])
