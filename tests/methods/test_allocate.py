"""How many units each layer keeps, against an exhaustive search."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ZOO, layout_of, mlp_layout
from rounds import mlp
from torch import nn

from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.methods import threshold
from flwr_autoflip.methods.threshold import floors


def allocate(
    layout: Layout, ratio: float, exponent: float, least: int = 1
) -> dict[str, int]:
    fewest = dict.fromkeys((group.name for group in layout.groups), least)
    return threshold.allocate(layout, ratio, exponent, fewest)


class TwoBranches(nn.Module):
    """One hidden layer that reads 19 inputs, and one that reads one of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = {"dear": (19, width), "cheap": (1, width)}
        for name, (inputs, outputs) in sizes.items():
            setattr(self, name, nn.Linear(inputs, outputs, bias=False))
            setattr(self, f"{name}_out", nn.Linear(outputs, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dear, cheap = self.dear_out(self.dear(x)), self.cheap_out(self.cheap(x[:, :1]))
        return torch.cat([dear, cheap], 1)


def plan_of(layout: Layout, counts: dict[str, int]) -> Plan:
    return Plan(layout, {name: np.arange(n) for name, n in counts.items()})


def loss(layout: Layout, counts: dict[str, int], exponent: float = 1) -> float:
    """What is to be as small as possible."""
    return sum((g.size / counts[g.name]) ** exponent for g in layout.groups)


def cost(layout: Layout, counts: dict[str, int]) -> float:
    """MACs and parameters, each as a ratio to the dense model's."""
    plan, dense = plan_of(layout, counts), dense_plan(layout)
    return plan.macs / dense.macs + plan.num_parameters / dense.num_parameters


def least_loss(layout: Layout, most: float, exponent: float) -> float:
    """Try every network that costs at most so much."""
    names = [group.name for group in layout.groups]
    every = product(*(range(1, group.size + 1) for group in layout.groups))
    found = (dict(zip(names, counts, strict=True)) for counts in every)
    fitting = (c for c in found if cost(layout, c) <= most * (1 + 1e-9))
    return min(loss(layout, c, exponent) for c in fitting)


@pytest.mark.parametrize(
    ("layout", "ratio", "least", "kept"),
    [
        # 3n + 2n of 20 MACs.
        *(
            (mlp_layout(), ratio, 1, [n])
            for ratio, n in ((0.75, 3), (0.74, 2), (0.25, 1))
        ),
        # 4a + ab + 4b MACs of 48: two layers of one price are cut alike.
        (mlp(4, 4, 4, 4), 20 / 48, 1, [2, 2]),
        (mlp(4, 4, 4, 4), 0.01, 3, [3, 3]),  # the fewest, even above the target
        (mlp(3, 5, 7, 2), 0.001, 1, [1, 1]),
        (mlp(3, 5, 7, 2), 1.0, 1, [5, 7]),
        # Without the first layer 60 MACs stay, and each of 20 units takes 10 + 5.
        (mlp(6, 10, 20, 5, ignored=("0",)), 0.5, 1, [10]),
    ],
)
@pytest.mark.parametrize("exponent", [1, 3])
def test_by_hand(
    layout: Layout, ratio: float, least: int, kept: list[int], exponent: float
) -> None:
    assert list(allocate(layout, ratio, exponent, least).values()) == kept


def test_by_hand_what_a_layer_costs_decides_how_far_the_exponent_goes() -> None:
    # A unit of a takes 19 + 1 MACs and as many parameters, one of b 1 + 1, so b keeps
    # 10 ** (1 / (exponent + 1)) times as many of as many units.
    layout = trace(TwoBranches(1000), torch.zeros(1, 19))

    for exponent in (1, 3):
        dear, cheap = allocate(layout, 0.25, exponent).values()
        assert cheap / dear == pytest.approx(10 ** (1 / (exponent + 1)), rel=0.02)


def test_what_is_cheap_and_narrow_stays_whole() -> None:
    # Four units between wide layers: a quarter of the MACs leaves them alone, where
    # an even cut would leave two.
    layout = mlp(2, 4, 256, 256, 2)
    narrow, *wide = allocate(layout, 0.25, 1).values()

    assert narrow == 4
    assert all(120 <= count <= 132 for count in wide)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(2, 7), min_size=3, max_size=5),
    st.floats(0.1, 1),
    st.sampled_from([0.5, 1, 3]),
)
def test_no_network_loses_less_at_that_cost(
    widths: list[int], ratio: float, exponent: float
) -> None:
    layout = mlp(*widths)
    counts = allocate(layout, ratio, exponent)
    # The optimum lies between whole numbers, so less than a unit a layer above.
    above = {g.name: min(counts[g.name] + 1, g.size) for g in layout.groups}

    best = least_loss(layout, cost(layout, counts), exponent)

    assert loss(layout, above, exponent) <= best + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize("name", ZOO)
def test_more_never_keeps_fewer_and_fits(name: str, least: int) -> None:
    layout = layout_of(name)
    dense = dense_plan(layout)
    before = fewest = allocate(layout, 1e-9, 3, least)
    for ratio in np.linspace(0.05, 1, 20):
        counts = allocate(layout, float(ratio), 3, least)
        fits = plan_of(layout, counts).macs <= ratio * dense.macs * (1 + 1e-9)
        assert fits or counts == fewest
        assert all(counts[group] >= before[group] for group in counts)
        before = counts
    assert set(fewest.values()) == {least}
    assert before == {group.name: group.size for group in layout.groups}


def test_a_tenth_rounded_up_and_at_least_one() -> None:
    assert list(floors(mlp(3, 5, 10, 11, 95, 2)).values()) == [1, 1, 2, 10]
