"""Models that are handled or refused, but never shrunk wrongly."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flwr_autoflip.errors import UnsupportedLayerError
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import arrays_of, load_arrays_inplace, shrink
from flwr_autoflip.graph.tracing.trace import trace


def assert_shrinks(model: nn.Module, x: torch.Tensor, groups: dict[str, int]) -> None:
    """Check the groups, and that masked and shrunk model agree."""
    layout = trace(model, x)

    assert {g.name: g.size for g in layout.groups} == groups
    generator = np.random.default_rng(0)
    keep = {n: np.sort(generator.permutation(s)[: s // 2]) for n, s in groups.items()}
    plan = Plan(layout, keep)
    small = shrink(model, plan).eval()
    load_arrays_inplace(model, plan.apply(arrays_of(model)))
    torch.testing.assert_close(small(x), model.eval()(x), atol=1e-5, rtol=1e-5)


class Twice(nn.Module):
    """Uses one layer two times, so that its inputs are its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(3, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x))
        return self.last(F.relu(self.again(F.relu(self.again(x)))))


def test_a_layer_that_is_used_twice() -> None:
    assert_shrinks(Twice(), torch.randn(2, 3), {"first": 8})


class InPlace(nn.Module):
    """Writes into a view of its own activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(3, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.a(x), inplace=True)
        y.view(-1, y.shape[-1]).add_(self.b(x))
        return self.last(y)


def test_in_place_through_a_view() -> None:
    assert_shrinks(InPlace(), torch.randn(2, 3), {"a": 8})


class Branching(nn.Module):
    """Takes a path that depends on what it computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.yes, self.no = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x))
        return self.yes(x) if x.mean() > 0.1 else self.no(x)


def test_control_flow_that_depends_on_data_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"forward \(Branching\): a Python"):
        trace(Branching(), torch.randn(2, 3))


def test_tied_weights_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight

    with pytest.raises(
        UnsupportedLayerError, match=r"0.weight = 2.weight.*ignored_layers"
    ):
        trace(model, torch.randn(1, 4))


class Tied(nn.Module):
    """A language model whose decoder is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.hidden, self.back = nn.Linear(6, 8), nn.Linear(8, 6)
        self.decode = nn.Linear(6, 7)
        self.decode.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.back(F.relu(self.hidden(self.embed(x)))))


@pytest.mark.parametrize("excluded", ["embed", "decode"])
def test_tied_weights_stay_dense_and_tied_when_excluded(excluded: str) -> None:
    model, x = Tied(), torch.tensor([[1, 4, 2]])

    layout = trace(model, x, ignored_layers=(excluded,))

    assert {group.name: group.size for group in layout.groups} == {"hidden": 8}
    plan = Plan(layout, {"hidden": np.array([0, 3, 5])})
    small = shrink(model, plan)
    assert small.decode.weight is small.embed.weight
    load_arrays_inplace(model, plan.apply(arrays_of(model)))
    torch.testing.assert_close(small(x), model(x), atol=1e-5, rtol=1e-5)


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(5, 8)
            self.last = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
            hidden = F.relu(self.a(x)) + self.b(y)
            return {"logits": self.last(hidden), "norm": hidden.detach().norm()}

    with pytest.raises(UnsupportedLayerError, match=r"no prunable unit|norm"):
        trace(Two(), (torch.randn(1, 3), torch.randn(1, 5)))
