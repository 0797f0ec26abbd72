"""Cuts between balanced and even."""

import numpy as np
import pytest
from models import build, layout_of

from examples.paper.tempered import Tempered
from flwr_autoflip.core.plan import Plan, dense_plan
from flwr_autoflip.core.shrink import arrays_of
from flwr_autoflip.core.threshold import MacShare
from flwr_autoflip.policies import L1Units

NAME = "conv_flat"


def plan_of(share: float, exponent: float) -> Plan:
    return Tempered(share, exponent)(0, layout_of(NAME), arrays_of(build(NAME)), [])


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 1.0])
def test_exponent_one_is_the_default(share: float) -> None:
    weights = arrays_of(build(NAME))
    default = L1Units(MacShare(share))(0, layout_of(NAME), weights, [])
    found = plan_of(share, 1)

    for name, kept in default.keep.items():
        np.testing.assert_array_equal(found.keep[name], kept)


@pytest.mark.parametrize("exponent", [0.5, 2, 3])
def test_it_fits(exponent: float) -> None:
    found = plan_of(0.4, exponent)

    assert found.macs <= 0.4 * dense_plan(layout_of(NAME)).macs
