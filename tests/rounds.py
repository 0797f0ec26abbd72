"""Rounds by hand, for methods."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from flwr_autoflip.graph.layout import Arrays, Layout
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.methods import Method, Order, Result, Round
from flwr_autoflip.methods.guidance import Report

REPORT: Report = {
    "fc1.weight": np.repeat(np.float32([[0], [8], [4], [2]]), 3, axis=1),
    "fc1.bias": np.float32([0, 10, 0, 5]),
    "fc2.weight": np.float32([[0, 1, 2, 3], [4, 5, 6, 8]]),
    "fc2.bias": np.float32([0, 1]),
}
"""Deviations of Linear 3 -> 4 -> 2, the layout ``mlp_layout``.

Min-max a tensor: fc1's rows 0 1 .5 .25, its bias 0 1 0 .5; fc2 0 .125 ... .75 1 (.875
left out), its bias 0 1. Neurons, means of 3 weights and a bias: 0 1 .375 .3125.
"""


def mlp(*widths: int, ignored: tuple[str, ...] = ()) -> Layout:
    """Linear layers in a row."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return trace(nn.Sequential(*layers[:-1]), torch.zeros(1, widths[0]), ignored)


def carried_out(
    order: Order,
    reports: Sequence[Report] | Mapping[int, Report] = (),
    weights: Arrays | None = None,
    number: int = 1,
    examples: Sequence[float] = (),
) -> Round:
    """Give the round of an order, of nodes 0, 1, ... or of these ids."""
    named = reports if isinstance(reports, Mapping) else dict(enumerate(reports))
    counts = examples or [1.0] * len(named)
    results = [
        Result(node, count, report)
        for (node, report), count in zip(named.items(), counts, strict=True)
    ]
    return Round(number, order, results, {} if weights is None else weights)


def after_round(
    method: Method[Any],
    layout: Layout,
    weights: Arrays,
    reports: Sequence[Report] | Mapping[int, Report],
) -> tuple[Any, Arrays]:
    """Begin a run, and let the method learn from its first order."""
    state, weights = method.begin(layout, weights)
    order = method.order(state, 1, range(len(reports)))
    return method.learn(state, carried_out(order, reports, weights))
