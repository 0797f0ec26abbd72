"""EFLPrune's criteria, by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from models import LstmNet, flat_layout, layout_of, mlp_layout, random_arrays

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.methods import EflPrune
from flwr_autoflip.methods.baselines.eflprune import batch_norm_scales, distances
from flwr_autoflip.methods.threshold import Compression, MacShare

WEIGHTS = {
    "fc1.weight": np.float32([[3, 0, 0], [1, 1, 2], [1, -1, 2], [0, 0, 2.5]]),
    "fc1.bias": np.float32([0, 0, 0, 0]),
    "fc2.weight": np.float32([[0, 0, 0, 99], [0, 0, 0, 98]]),
    "fc2.bias": np.float32([0, 0]),
}
"""L1 norms 3, 4, 4, 2.5; L2 norms 3, 2.45, 2.45, 2.5."""

LSTM = trace(LstmNet(), torch.zeros(1, 7, dtype=torch.long))
"""A unit owns a row of each of four gates."""


def keep(criterion: Any, count: int) -> list[int]:
    plan = EflPrune(criterion, {"fc1": count})(1, mlp_layout(), WEIGHTS, [])
    return plan.keep["fc1"].tolist()


def test_l1_and_l2_norms_rank_by_hand() -> None:
    assert keep("l1", 2) == [1, 2]
    assert keep("l2", 2) == [0, 3]


def test_distances_by_hand() -> None:
    found = distances(mlp_layout(), WEIGHTS)["fc1"]

    # Squared: 0-1 4+1+4 = 9, 0-2 9, 0-3 9+6.25 = 15.25, 1-2 4, 1-3 2.25, 2-3 2.25.
    far, near = np.sqrt(15.25), np.sqrt(2.25)
    np.testing.assert_allclose(
        found, [6 + far, 3 + 2 + near, 3 + 2 + near, far + 2 * near]
    )
    assert keep("similarity", 2) == [0, 3]  # the two alike go first


def test_biases_count_in_distances_and_columns_do_not() -> None:
    weights = {t.name: np.zeros(t.shape, t.dtype) for t in flat_layout().tensors}
    weights["norm.bias"][0] = 3
    weights["conv.weight"][1, 0, 0, 1] = -4
    weights["fc1.weight"][:, 0] = 50  # filter 0's columns; all neurons alike

    found = distances(flat_layout(), weights)

    np.testing.assert_allclose(found["conv"], [5, 5])
    np.testing.assert_allclose(found["fc1"], [0, 0, 0])


@pytest.mark.parametrize("name", ["lstm", "residual", "depthwise", "grouped"])
def test_distances_against_a_naive_loop(name: str) -> None:
    layout = LSTM if name == "lstm" else layout_of(name)
    weights = random_arrays(layout)

    found = distances(layout, weights)

    for group in layout.groups:
        vectors = []
        for unit in range(group.first, group.first + group.size):
            parts = [
                np.take(weights[t.name], np.flatnonzero(t.owners[axis] == unit), axis)
                for t in layout.tensors
                for axis in t.own_axes
                if t.trainable
            ]
            vectors.append(np.concatenate([p.ravel() for p in parts]))
        naive = [sum(np.linalg.norm(a - b) for b in vectors) for a in vectors]
        np.testing.assert_allclose(found[group.name], naive, rtol=1e-6)


def test_batch_norm_scales_by_hand() -> None:
    layout = flat_layout()
    weights = {t.name: np.zeros(t.shape, t.dtype) for t in layout.tensors}
    weights["norm.weight"][:] = [-3, 2]
    weights["norm.bias"][:] = [0, 99]
    weights["fc1.weight"][2] = 8

    plan = EflPrune("bn", {"conv": 1, "fc1": 1})(1, with_variance(), weights, [])

    np.testing.assert_array_equal(plan.keep["conv"], [0])
    np.testing.assert_array_equal(plan.keep["fc1"], [2])  # by L1: it has none


def with_variance() -> Any:
    """The flat layout with BatchNorm's other buffer, which tells what it is."""
    from dataclasses import replace

    layout = flat_layout()
    mean = layout.by_name["norm.running_mean"]
    variance = replace(mean, name="norm.running_var")
    return type(layout)((*layout.tensors, variance), layout.groups)


def test_batch_norm_of_a_real_model_is_found() -> None:
    layout = layout_of("batch_norm")
    weights = random_arrays(layout)

    found = batch_norm_scales(layout, weights)

    np.testing.assert_allclose(found["conv"], np.abs(weights["norm.weight"]))
    np.testing.assert_allclose(found["fc1"], np.abs(weights["norm1.weight"]))


def test_bn_without_batch_norm_is_one_clear_error() -> None:
    with pytest.raises(AutoFlipError, match="no group of this model has a BatchNorm"):
        EflPrune("bn", {"fc1": 1})(1, mlp_layout(), WEIGHTS, [])


def test_random_units_differ_by_round_and_seed_and_repeat() -> None:
    layout = layout_of("conv_flat")

    def draw(server_round: int, seed: int = 0) -> tuple[bool, ...]:
        policy = EflPrune("random", MacShare(0.5, exponent=np.inf), seed)
        return tuple(policy(server_round, layout, {}, []).alive)

    assert len({draw(r) for r in range(20)}) > 15
    assert len({draw(1, seed) for seed in range(20)}) > 15
    assert draw(3) == draw(3)


def test_magnitude_masks_single_weights_by_hand() -> None:
    plan = EflPrune("magnitude", Compression(26 / 16))(1, mlp_layout(), WEIGHTS, [])

    # 16 of 26 stay: 6 biases and half of 12 and of 8 weights, the earlier of equals.
    assert plan.alive.all()
    assert plan.num_parameters == 16
    np.testing.assert_array_equal(
        plan.mask["fc1.weight"], [[1, 0, 0], [1, 1, 1], [0, 0, 1], [0, 0, 1]]
    )
    np.testing.assert_array_equal(plan.mask["fc2.weight"], [[1, 1, 0, 1], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("criterion", "threshold", "message"),
    [
        ("l3", MacShare(0.5), "criterion must be one of"),
        ("magnitude", {"fc1": 2}, "prunes single weights"),
        ("magnitude", MacShare(0.5), "prunes single weights"),
    ],
)
def test_wrong_options(criterion: Any, threshold: Any, message: str) -> None:
    with pytest.raises(AutoFlipError, match=message):
        EflPrune(criterion, threshold)


def test_plans_follow_the_weights() -> None:
    policy = EflPrune("l1", {"fc1": 2})

    assert (policy.explores, policy.per_round) == (False, False)
    assert policy.renewed == "weights"
    assert not policy.probes(50)
