"""Layers before and after, by hand and against the model that is built."""

import numpy as np
from federation import EXAMPLE, TinyNet

from flwr_autoflip.cli.inspect import layer_sizes
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import shrink
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.ledger.cost import measure_cost

LAYOUT = trace(TinyNet(), EXAMPLE)
KEEP = {"conv": np.array([0, 2, 5]), "fc1": np.array([1, 2, 6, 7])}


def test_sizes_by_hand() -> None:
    conv, norm, fc1, fc2 = layer_sizes(Plan(LAYOUT, KEEP))

    assert (conv["name"], conv["dense_shape"], conv["shape"]) == (
        "conv",
        (6, 1, 3, 3),
        (3, 1, 3, 3),
    )
    assert (conv["dense_parameters"], conv["parameters"]) == (6 * 9 + 6, 3 * 9 + 3)
    assert (conv["dense_macs"], conv["macs"]) == (64 * 54, 64 * 27)
    assert (norm["name"], norm["parameters"], norm["macs"]) == ("norm", 6, 0)
    assert (fc1["dense_shape"], fc1["shape"]) == ((8, 96), (4, 48))
    assert (fc2["parameters"], fc2["macs"]) == (3 * 4 + 3, 3 * 4)


def test_sums_are_those_of_the_model_that_is_built() -> None:
    plan = Plan(LAYOUT, KEEP)
    layers = layer_sizes(plan)
    small = measure_cost(shrink(TinyNet(), plan), EXAMPLE)

    assert sum(layer["parameters"] for layer in layers) == small.parameters
    assert sum(layer["macs"] for layer in layers) == small.macs


def test_single_weights_that_went_save_parameters_alone() -> None:
    mask = {"fc1.weight": np.zeros((8, 96), np.bool_)}
    mask["fc1.weight"][:, :10] = True

    whole, cut = (layer_sizes(Plan(LAYOUT, KEEP, m))[2] for m in ({}, mask))

    assert cut["parameters"] == 4 * 10 + 4 < whole["parameters"]
    assert cut["macs"] == whole["macs"]
