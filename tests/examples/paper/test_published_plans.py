"""Published results rest on these plans: they stay what they were, unit by unit."""

from hashlib import blake2b

import numpy as np
import pytest
import torch
from torch import nn

from examples.paper.tasks import TASKS
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.methods import L1Units
from flwr_autoflip.methods.threshold import parse_threshold

THRESHOLDS = ("macs:0.5", "macs:0.25", "macs:0.1", "even-macs:0.25", "2x", "mass:0.7")
PLANS = {
    "quickstart": [
        "348a46b87c90",
        "a6643f9f57dc",
        "438f88f2716b",
        "5324dc5e36cc",
        "b76059fd39ac",
        "b0c2b366e2fe",
    ],
    "mnist": [
        "72b5bdc8d451",
        "22796313dc45",
        "b8f347358bf8",
        "0befe59c7b7b",
        "1dc21bde1f5d",
        "da805f0fdf25",
    ],
    "cifar10": [
        "61db29b00122",
        "2973e8371496",
        "c9fe2bb2dc87",
        "092bf5e82661",
        "ab35a2269b99",
        "377e09ed2798",
    ],
    "cifar100": [
        "63fcf34c244b",
        "dd61505d9f68",
        "96cb43191517",
        "fda6afd94462",
        "b3c7daa2172e",
        "665b384bedcf",
    ],
    "femnist": [
        "75840b641866",
        "c1e75e8feac5",
        "9e2a9e1b589f",
        "1f260415a871",
        "aca751ee78ad",
        "71c9700250b4",
    ],
    "shakespeare": [
        "6ff8dd9fd15f",
        "5daea7d6272e",
        "7adc49692968",
        "9fe5f04ec10f",
        "618d4e67b0c3",
        "6366d1b69c99",
    ],
}
"""Model to a digest of its plan, one a threshold."""


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    if name == "quickstart":
        from quickstart.task import Net

        return Net(), torch.zeros(1, 1, 28, 28)
    return TASKS[name].build(TASKS[name].scale("small")), TASKS[name].example_input


def digest(plan: Plan) -> str:
    kept = blake2b(digest_size=6)
    for name, units in sorted(plan.keep.items()):
        kept.update(name.encode() + units.astype("<i8").tobytes())
    return kept.hexdigest()


@pytest.mark.parametrize("name", PLANS)
def test_plans_are_those_of_the_published_results(name: str) -> None:
    layout = trace(*build(name))
    generator = np.random.default_rng(0)
    weights = {
        t.name: generator.standard_normal(t.shape).astype(np.float32)
        for t in layout.tensors
    }

    policies = [L1Units(parse_threshold(threshold)) for threshold in THRESHOLDS]
    plans = [policy(0, layout, weights, []) for policy in policies]

    assert not layout.fixed
    assert [digest(plan) for plan in plans] == PLANS[name]
