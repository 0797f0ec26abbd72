"""The paper's models: their sizes, and that they shrink."""

import numpy as np
import pytest
import torch
from torch import nn

from examples.paper.models import ResNet50, scaled
from examples.paper.tasks import TASKS
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import shrink
from flwr_autoflip.graph.tracing.trace import trace

REPORTED = {
    "mnist": 7_628_484,
    "cifar10": 10_838_784,
    "cifar100": 23_755_900,
    "femnist": 13_180_734,
    "shakespeare": 5_040_000,
}
DIFFERENCE = {
    "mnist": 6,
    "cifar10": -127_182,
    "cifar100": -42_968,
    "femnist": 0,
    "shakespeare": 0,
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", TASKS)
def test_parameters_at_the_papers_width(name: str) -> None:
    task = TASKS[name]
    with torch.device("meta"):
        model = task.build(task.scales["paper"])

    assert count(model) == REPORTED[name] + DIFFERENCE[name]


def test_resnet_has_torchvisions_tensors() -> None:
    from torchvision.models import resnet50

    with torch.device("meta"):
        ours, theirs = ResNet50().state_dict(), resnet50(num_classes=100).state_dict()

    assert {n: t.shape for n, t in ours.items()} == {
        n: t.shape for n, t in theirs.items()
    }


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", TASKS)
def test_half_of_the_units_make_a_smaller_model(name: str, scale: str) -> None:
    task = TASKS[name]
    model = task.build(task.scales[scale])
    layout = trace(model, task.example_input)
    half = {group.name: np.arange(group.size // 2) for group in layout.groups}
    plan = Plan(layout, half)

    small = shrink(model, plan).eval()

    assert count(small) < 0.35 * count(model)
    assert plan.macs < 0.4 * sum(t.macs_per_weight * t.size for t in layout.tensors)
    with torch.no_grad():
        logits = small(task.example_input)
    assert logits.shape[-1] == task.classes
    assert torch.isfinite(logits).all()


def test_no_layer_is_scaled_away() -> None:
    assert scaled((8, 100), 0.25) == [4, 25]
