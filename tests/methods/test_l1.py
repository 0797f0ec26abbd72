"""Units with the largest weights, by hand."""

import numpy as np
from models import flat_layout, mlp_layout

from flwr_autoflip.methods import L1Units
from flwr_autoflip.methods.threshold import Compression, MacShare

WEIGHTS = {
    "fc1.weight": np.float32([[1, -1, 1], [0, 0, 0], [-5, 0, 0], [0.5, 0.5, -0.5]]),
    "fc1.bias": np.float32([0, -9, 1, 0]),
    "fc2.weight": np.float32([[0, 0, 0, 99], [0, 0, 0, 99]]),
    "fc2.bias": np.float32([0, 0]),
}
"""Sizes of neurons: 3 + 0, 0 + 9, 5 + 1, 1.5 + 0, over 4; fc2 does not count."""


def test_the_largest_by_mean_absolute_value_stay() -> None:
    plan = L1Units({"fc1": 2})(1, mlp_layout(), WEIGHTS, [])

    np.testing.assert_array_equal(plan.keep["fc1"], [1, 2])


def test_targets_by_hand() -> None:
    # n neurons have 6n + 2 of 26 parameters and cost 5n of 20 MACs.
    compressed = L1Units(Compression(1.3))(1, mlp_layout(), WEIGHTS, [])
    cheaper = L1Units(MacShare(0.25))(1, mlp_layout(), WEIGHTS, [])

    np.testing.assert_array_equal(compressed.keep["fc1"], [0, 1, 2])
    np.testing.assert_array_equal(cheaper.keep["fc1"], [1])


def test_all_own_parameters_count_and_buffers_do_not() -> None:
    layout = flat_layout()
    weights = {t.name: np.zeros(t.shape, t.dtype) for t in layout.tensors}
    weights["conv.weight"][0] = -1  # filter 0: 2
    weights["norm.bias"][1] = -3  # filter 1: 3
    weights["norm.running_mean"][0] = 100
    weights["fc1.weight"][:, :2] = 50  # filter 0's columns, neurons' own

    plan = L1Units({"conv": 1, "fc1": 3})(1, layout, weights, [])

    np.testing.assert_array_equal(plan.keep["conv"], [1])


def test_plan_follows_the_weights_at_hand() -> None:
    later = WEIGHTS | {"fc1.bias": np.float32([50, 0, 0, 40])}

    plan = L1Units({"fc1": 2})(9, mlp_layout(), later, [])

    np.testing.assert_array_equal(plan.keep["fc1"], [0, 3])


def test_l1_units_need_no_explorers() -> None:
    policy = L1Units({"fc1": 2})

    assert not policy.explores
    assert not policy.per_round
