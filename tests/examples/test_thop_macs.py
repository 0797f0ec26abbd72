"""THOP beside the package's own counter."""

import pytest
from models import batch, build

from flwr_autoflip.ledger.cost import count_macs

pytest.importorskip("thop")

from examples.thop_macs import count_macs_thop


def test_both_count_the_same_for_layers_that_both_know() -> None:
    model = build("conv_flat")

    for size in (1, 2):
        example = batch("conv_flat", size)
        assert count_macs_thop(model, example) == count_macs(model, example)
