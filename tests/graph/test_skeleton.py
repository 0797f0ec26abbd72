"""The dense model is never allocated, unless it has to be."""

import numpy as np
import pytest
import torch
from models import ZOO, build, layout_of, random_plan
from torch import nn

from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import (
    arrays_of,
    build_small,
    load_arrays_inplace,
    shrink,
)
from flwr_autoflip.graph.tracing.trace import trace


@pytest.mark.parametrize("name", ZOO)
def test_it_is_the_shrunk_model(name: str) -> None:
    plan = random_plan(layout_of(name), 0)
    expected = shrink(build(name), plan)

    small = build_small(lambda: build(name), plan)
    load_arrays_inplace(small, arrays_of(expected))

    for key, array in arrays_of(expected).items():
        np.testing.assert_array_equal(arrays_of(small)[key], array)
    assert {t.device.type for t in small.state_dict().values()} == {"cpu"}


class Loose(nn.Module):
    """Keeps a tensor that its state_dict does not have."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)
        if place == "attribute":
            self.scale = torch.full((3,), 2.0)
        elif place == "list":
            self.scales = [torch.full((3,), 2.0)]
        elif place == "buffer":
            self.register_buffer("scale", torch.full((3,), 2.0), persistent=False)
        else:
            self.number = float(torch.full((3,), 2.0).sum())
        self.place = place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.place == "list":
            x = x * self.scales[0]
        elif self.place == "number":
            x = x * self.number
        else:
            x = x * self.scale
        return self.last(torch.relu(self.first(x)))


@pytest.mark.parametrize("place", ["attribute", "list", "buffer", "number"])
def test_values_outside_the_state_dict_survive(place: str) -> None:
    model = Loose(place)
    plan = Plan(trace(model, torch.zeros(1, 3)), {"first": np.array([1, 4])})
    expected = shrink(model, plan)

    small = build_small(lambda: Loose(place), plan)
    load_arrays_inplace(small, arrays_of(expected))

    x = torch.randn(4, 3)
    torch.testing.assert_close(small(x), expected(x))


def test_what_model_fn_gives_may_change() -> None:
    """Its structure is all that a plan speaks of: a rate of dropout may be another."""
    rate = 0.1

    def model_fn() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 6), nn.Dropout(rate), nn.Linear(6, 2))

    plan = Plan(trace(model_fn(), torch.zeros(1, 3)), {"0": np.array([1, 4])})
    first = build_small(model_fn, plan)
    rate = 0.7
    second = build_small(model_fn, plan)

    assert [small[1].p for small in (first, second)] == [0.1, 0.7]
    ours = {p.data_ptr() for p in first.parameters()}
    assert ours.isdisjoint(p.data_ptr() for p in second.parameters())


def test_the_dense_model_gets_no_memory() -> None:
    devices = []

    def model_fn() -> nn.Module:
        model = build("conv_flat")
        devices.append({tensor.device.type for tensor in model.parameters()})
        return model

    build_small(model_fn, random_plan(layout_of("conv_flat"), 0))

    assert devices == [{"meta"}]


class Tied(nn.Module):
    """Reads tokens and foretells them with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(7, 4), nn.Linear(4, 6)
        self.back, self.head = nn.Linear(6, 4), nn.Linear(4, 7)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.back(torch.relu(self.body(self.embed(x)))))


def test_tied_weights_stay_one_tensor() -> None:
    layout = trace(Tied(), torch.tensor([[1, 4, 2]]), ignored_layers=("embed",))

    small = build_small(Tied, Plan(layout, {"body": np.array([0, 5])}))

    assert small.head.weight is small.embed.weight
