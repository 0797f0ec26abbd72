"""Multiply-accumulates by THOP, the paper's counter."""

import copy
from typing import Any

import thop
from torch import nn

from flwr_autoflip.graph.batch import arguments, batch_size


def count_macs_thop(model: nn.Module, example_input: Any) -> int:
    """Count forward MACs of one example.

    THOP adds the cost of normalisation and pooling layers, and misses attention.
    """

    class Call(nn.Module):
        """THOP has no arguments by keyword."""

        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(model)

        def forward(self) -> None:
            self.model(*args, **kwargs)

    args, kwargs = arguments(example_input)
    macs, _ = thop.profile(Call(), inputs=(), verbose=False)
    return int(macs) // (batch_size(args, kwargs) or 1)
