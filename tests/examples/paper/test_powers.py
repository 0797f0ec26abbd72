"""Cuts by a power of the width, by hand and against an even share."""

import numpy as np
import pytest
from models import build, layout_of

from examples.paper.powers import Powers
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.methods import L1Units
from flwr_autoflip.methods.threshold import MacShare

NAME = "conv_flat"  # groups of 4, 6 and 8 units


def plan_of(share: float, exponent: float) -> Plan:
    return Powers(share, exponent)(0, layout_of(NAME), arrays_of(build(NAME)), [])


@pytest.mark.parametrize("share", [0.2, 0.3, 0.7, 1.0])
def test_power_one_is_an_even_share(share: float) -> None:
    weights = arrays_of(build(NAME))
    even = L1Units(MacShare(share, exponent=np.inf))(0, layout_of(NAME), weights, [])
    found = plan_of(share, 1)

    for name, kept in even.keep.items():
        np.testing.assert_array_equal(found.keep[name], kept)


def test_power_zero_keeps_as_many_everywhere_and_fits() -> None:
    found = plan_of(0.4, 0)

    assert len({len(kept) for kept in found.keep.values()}) == 1
    assert found.macs <= 0.4 * dense_plan(layout_of(NAME)).macs


def test_a_lower_power_cuts_wide_layers_deeper() -> None:
    counts = {
        exponent: [len(kept) for kept in plan_of(0.4, exponent).keep.values()]
        for exponent in (0.25, 1)
    }

    assert counts[0.25][0] >= counts[1][0]
    assert counts[0.25][-1] < counts[1][-1]
