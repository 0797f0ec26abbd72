"""What shrink promises beyond equivalence, masks that hold, models never allocated."""

import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from models import ConvFlat, batch, build, layout_of, random_plan
from torch import nn
from torch.nn import functional as F

from flwr_autoflip import AutoFlipError, Plan, shrink, trace
from flwr_autoflip.graph.plan import dense_plan
from flwr_autoflip.graph.shrink import (
    arrays_of,
    build_small,
    hold_mask,
    load_arrays_inplace,
)

MASKED = random_plan(layout_of("conv_flat"), 5, masked=True)


def masked_small() -> nn.Module:
    """Build the small model of MASKED."""
    return shrink(build("conv_flat"), MASKED)


def test_whole_plan_is_a_copy_that_shares_no_memory() -> None:
    model = build("batch_norm")

    theirs = shrink(model, dense_plan(layout_of("batch_norm"))).state_dict()

    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(theirs[name].numpy(), tensor.numpy())
        assert theirs[name].data_ptr() != tensor.data_ptr()


def test_training_mode_and_frozen_parameters_stay() -> None:
    model = build("conv_flat").eval()
    model.conv1.weight.requires_grad_(False)

    small = shrink(model, random_plan(layout_of("conv_flat"), 0))

    assert not small.training
    assert not small.conv1.weight.requires_grad
    assert small.conv1.bias.requires_grad


def test_channels_last_stays_and_computes_the_same() -> None:
    plan, model = random_plan(layout_of("conv_flat"), 0), build("conv_flat").eval()
    x, last = batch("conv_flat"), torch.channels_last
    expected = shrink(model, plan)(x)

    small = shrink(model.to(memory_format=last), plan)

    found = small(x.to(memory_format=last))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_another_model_is_refused() -> None:
    other = ConvFlat()
    other.fc2 = nn.Linear(8, 5)
    with pytest.raises(AutoFlipError, match=re.escape("fc2.weight: expected (3, 8)")):
        shrink(other, dense_plan(layout_of("conv_flat")))

    with pytest.raises(AutoFlipError, match=r"conv2\.weight: .*got nothing"):
        shrink(nn.Sequential(), dense_plan(layout_of("conv_flat")))

    other = ConvFlat()
    other._modules = dict(reversed(other._modules.items()))
    with pytest.raises(AutoFlipError, match="another order"):
        shrink(other, dense_plan(layout_of("conv_flat")))


def test_loading_arrays_gives_them_back() -> None:
    model = build("batch_norm")
    arrays = {n: a + 1 for n, a in arrays_of(model).items()}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_arrays_inplace(model, arrays)

    for name, array in arrays_of(model).items():
        np.testing.assert_array_equal(array, arrays[name])


# --- hold_mask ---

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-2),
}


def assert_held(arrays: Any) -> None:
    """Check that what the mask prunes is 0."""
    assert MASKED.small_mask
    for name, mask in MASKED.small_mask.items():
        np.testing.assert_array_equal(arrays[name][~mask], 0, err_msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("compiled", [False, True])
def test_masked_weights_stay_0_and_others_move(optimizer: str, compiled: bool) -> None:
    small = masked_small()
    before = arrays_of(small)
    optim = OPTIMIZERS[optimizer](small.parameters())
    called = torch.compile(small, backend="eager") if compiled else small

    with hold_mask(small, MASKED), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        for _ in range(3):
            optim.zero_grad()
            loss = F.cross_entropy(called(batch("conv_flat", 8)), torch.arange(8) % 3)
            loss.backward()
            optim.step()

    after = arrays_of(small)
    assert_held(after)
    moved = sum(np.count_nonzero(after[name] != before[name]) for name in after)
    assert moved > MASKED.num_parameters / 2


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_gone_after_the_context(fails: bool) -> None:
    def gradients() -> dict[str, np.ndarray]:
        small.zero_grad()
        small(batch("conv_flat")).square().sum().backward()
        return {n: p.grad.numpy().copy() for n, p in small.named_parameters()}

    small = masked_small()
    with suppress(KeyError), hold_mask(small, MASKED):
        held = gradients()
        if fails:
            raise KeyError
    free = gradients()

    assert_held(held)
    assert any(free[name][~mask].any() for name, mask in MASKED.small_mask.items())


# --- Without ever allocating the dense model ---


class Loose(nn.Module):
    """Keeps a tensor that its state_dict does not have."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)
        two = torch.full((3,), 2.0)
        if place == "attribute":
            self.scale = two
        elif place == "list":
            self.scales = [two]
        elif place == "buffer":
            self.register_buffer("scale", two, persistent=False)
        else:
            self.scale = float(two.sum())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.scales[0] if hasattr(self, "scales") else self.scale
        return self.last(torch.relu(self.first(x * scale)))


@pytest.mark.parametrize("place", ["attribute", "list", "buffer", "number"])
def test_values_outside_the_state_dict_survive(place: str) -> None:
    model = Loose(place)
    plan = Plan(trace(model, torch.zeros(1, 3)), {"first": np.array([1, 4])})
    expected = shrink(model, plan)

    small = build_small(lambda: Loose(place), plan)
    load_arrays_inplace(small, arrays_of(expected))

    x = torch.randn(4, 3)
    torch.testing.assert_close(small(x), expected(x))


def test_the_dense_model_gets_no_memory_and_may_change() -> None:
    """Its structure is all that a plan speaks of: a rate of dropout may be another."""
    rate, devices = 0.1, []

    def model_fn() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 6), nn.Dropout(rate), nn.Linear(6, 2))
        devices.append({tensor.device.type for tensor in model.parameters()})
        return model

    plan = Plan(trace(model_fn(), torch.zeros(1, 3)), {"0": np.array([1, 4])})
    first = build_small(model_fn, plan)
    rate = 0.7
    second = build_small(model_fn, plan)

    assert devices == [{"cpu"}, {"meta"}, {"meta"}]
    assert [small[1].p for small in (first, second)] == [0.1, 0.7]
    ours = {p.data_ptr() for p in first.parameters()}
    assert ours.isdisjoint(p.data_ptr() for p in second.parameters())


def test_tied_weights_stay_one_tensor() -> None:
    def model_fn() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 4))
        model.append(nn.Linear(4, 4))
        model[3].weight = model[0].weight
        return model

    layout = trace(model_fn(), torch.zeros(1, 4), ignored_layers=("0",))
    plan = Plan(layout, {"1": np.array([0, 5])})

    for small in (build_small(model_fn, plan), shrink(model_fn(), plan)):
        assert small[3].weight is small[0].weight
