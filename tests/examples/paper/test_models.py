"""The paper's models: their sizes, and which units the published results keep."""

from hashlib import blake2b

import numpy as np
import pytest
import torch

from examples.paper.models import ResNet50
from examples.paper.tasks import TASKS
from flwr_autoflip import Plan, shrink, trace
from flwr_autoflip.ledger.cost import count_parameters
from flwr_autoflip.methods import L1

# Parameters as the paper reports them, and ours over that.
REPORTED = {
    "mnist": (7_628_484, 6),
    "cifar10": (10_838_784, -127_182),
    "cifar100": (23_755_900, -42_968),
    "femnist": (13_180_734, 0),
    "shakespeare": (5_040_000, 0),
}
DIGESTS = {
    "mnist": "22796313dc45",
    "cifar10": "2973e8371496",
    "cifar100": "dd61505d9f68",
    "femnist": "c1e75e8feac5",
    "shakespeare": "5daea7d6272e",
}
"""Of the default's plans for drawn weights, unit by unit."""


@pytest.mark.parametrize("name", TASKS)
def test_parameters_at_the_papers_width(name: str) -> None:
    with torch.device("meta"):
        model = TASKS[name].build(TASKS[name].scales["paper"])

    assert count_parameters(model) == sum(REPORTED[name])


def test_resnet_has_torchvisions_tensors() -> None:
    from torchvision.models import resnet50

    with torch.device("meta"):
        ours, theirs = ResNet50().state_dict(), resnet50(num_classes=100).state_dict()

    assert {n: t.shape for n, t in ours.items()} == {
        n: t.shape for n, t in theirs.items()
    }


@pytest.mark.parametrize("name", TASKS)
def test_half_of_the_units_make_a_smaller_model(name: str) -> None:
    task = TASKS[name]
    model = task.build(task.scales["small"])
    layout = trace(model, task.example_input)
    half = {group.name: np.arange(group.size // 2) for group in layout.groups}

    small = shrink(model, Plan(layout, half)).eval()

    assert count_parameters(small) < 0.35 * count_parameters(model)
    with torch.no_grad():
        logits = small(task.example_input)
    assert logits.shape[-1] == task.classes
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", TASKS)
def test_plans_are_those_of_the_published_results(name: str) -> None:
    task = TASKS[name]
    layout = trace(task.build(task.scales["small"]), task.example_input)
    rng = np.random.default_rng(0)
    weights = {
        t.name: rng.standard_normal(t.shape).astype(np.float32) for t in layout.tensors
    }

    plan = L1(macs=0.25).begin(layout, weights)[0].plan

    kept = blake2b(digest_size=6)
    for group, units in sorted(plan.keep.items()):
        kept.update(group.encode() + units.astype("<i8").tobytes())
    assert kept.hexdigest() == DIGESTS[name]
