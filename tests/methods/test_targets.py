"""What a ratio is of, how small a group gets, and what is said where that binds."""

import itertools
import warnings
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from flwr_autoflip import AutoFlipError, AutoFlipWarning
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.methods import L1


def plan_of(
    model: nn.Module, example: Any, ignored_layers: Iterable[str] = (), **how: Any
) -> Plan:
    """L1's plan for a model's first weights."""
    layout = trace(model, example, tuple(ignored_layers))
    return L1(**how).begin(layout, arrays_of(model))[0].plan


def kept(plan: Plan) -> list[int]:
    return [len(units) for units in plan.keep.values()]


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers in a row."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Cnn(nn.Module):
    """Two convolutions and two linear layers; input (1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 16, 5), nn.Conv2d(16, 16, 3)
        self.f1, self.f2 = nn.Linear(16 * 25, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(torch.relu(self.c1(x)), 2)
        x = torch.max_pool2d(torch.relu(self.c2(x)), 2)
        return self.f2(torch.relu(self.f1(x.flatten(1))))


class Encoder(nn.Module):
    """Two encoder layers; input 12 tokens of 100."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 512, batch_first=True)
        self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.enc(self.embed(x)).mean(1))


# --- A ratio is of what can shrink ---

# Linear 6 -> 10 -> 20 -> 5 without its first layer: 60 MACs stay, and each of 20 units
# takes 10 + 5. It has 11 + 5 parameters, beside 70 that stay and 5 of the outputs.
FIRST = {"example": torch.zeros(1, 6), "ignored_layers": ("0",)}


@pytest.mark.parametrize(
    ("threshold", "units"),
    [
        ("macs:0.25", 5),  # 75 of 300 MACs
        ("even-macs:0.25", 5),
        ("macs:1", 20),
        ("2x", 9),  # 9 * 16 + 5 of 325 parameters
    ],
)
def test_by_hand_layers_that_cannot_shrink_are_not_counted(
    threshold: str, units: int
) -> None:
    assert kept(plan_of(mlp(6, 10, 20, 5), **FIRST, threshold=threshold)) == [units]


def test_excluding_a_layer_does_not_crush_the_others() -> None:
    plan = plan_of(Cnn(), torch.zeros(1, 1, 28, 28), ignored_layers=("c1",))

    assert plan.keep["c2"].size >= 4
    assert plan.keep["f1"].size >= 32


def test_excluding_a_stage_does_not_crush_the_others() -> None:
    models = pytest.importorskip("torchvision.models")
    example = torch.zeros(1, 3, 64, 64)

    plan = plan_of(models.resnet18(), example, ignored_layers=("layer1",))

    for group in plan.layout.groups:
        assert len(plan.keep[group.name]) >= 0.25 * group.size


@pytest.mark.parametrize("ignored", [(), [f"enc.layers.{i}.self_attn" for i in (0, 1)]])
def test_feed_forwards_take_their_own_share(ignored: Iterable[str]) -> None:
    example = torch.zeros(1, 12, dtype=torch.long)

    plan = plan_of(Encoder(), example, ignored_layers=ignored)

    for number in (0, 1):
        assert plan.keep[f"enc.layers.{number}.linear1"].size == 128  # of 512


# --- Floors ---


@pytest.mark.parametrize("threshold", ["macs:0.1", "even-macs:0.1", "9x"])
def test_a_tenth_of_a_group_is_in_reach(threshold: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = plan_of(mlp(6, 100, 5), torch.zeros(1, 6), threshold=threshold)

    assert kept(plan) == [10]


@pytest.mark.parametrize("threshold", ["macs:0.02", "even-macs:0.02", "40x"])
def test_no_group_falls_below_a_tenth_and_that_is_said(
    threshold: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, example = mlp(6, 95, 15, 5), torch.zeros(1, 6)

    with pytest.warns(
        AutoFlipWarning, match="is out of reach: it asks for 0.02"
    ) as got:
        plan = plan_of(model, example, threshold=threshold)

    assert kept(plan) == [10, 2]  # a tenth, rounded up
    assert len(got) == 1
    text = str(got[0].message)
    assert "a tenth of every group" in text
    assert "give units a group" in text
    assert "\n" not in text
    assert caplog.messages == [f"\t> {text}"]


def test_what_is_out_of_reach_names_the_layers_that_stay() -> None:
    with pytest.warns(AutoFlipWarning, match=r"not counted") as got:
        plan_of(mlp(6, 10, 20, 5), **FIRST, macs=0.02)

    assert "['0']" in str(got[0].message)


def test_plans_that_are_made_again_say_it_once_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = mlp(6, 100, 5)
    layout = trace(model, torch.zeros(1, 6))

    for _ in range(3):
        with pytest.warns(AutoFlipWarning):
            L1(macs=0.02).begin(layout, arrays_of(model))

    assert len(caplog.messages) == 1


@pytest.mark.parametrize("threshold", ["quantile:0.97", "global-quantile:0.97"])
def test_rules_that_keep_less_than_a_tenth_keep_a_tenth_and_say_so(
    threshold: str,
) -> None:
    with pytest.warns(AutoFlipWarning, match=r"less than a tenth .* of \['0'\]"):
        plan = plan_of(mlp(6, 100, 5), torch.zeros(1, 6), threshold=threshold)

    assert kept(plan) == [10]


def test_rounding_up_to_a_multiple_is_no_surprise() -> None:
    example = torch.zeros(1, 6)

    plan = plan_of(mlp(6, 100, 5), example, macs=0.1, round_to=16)

    assert kept(plan) == [16]


def test_who_counts_units_gets_them() -> None:
    assert kept(plan_of(mlp(6, 100, 5), torch.zeros(1, 6), threshold="0=1")) == [1]


def test_nothing_that_could_shrink_is_an_error() -> None:
    with pytest.raises(AutoFlipError, match=r"no prunable unit: .* is ignored"):
        plan_of(mlp(6, 9, 5), torch.zeros(1, 6), ignored_layers=("0",))
