"""EFLPrune's criteria, by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from models import LstmNet, layout_of, mlp_layout, random_arrays
from rounds import carried_out

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.graph.layout import Arrays, Layout
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.methods import EFLPrune

WEIGHTS = {
    "fc1.weight": np.float32([[3, 0, 0], [1, 1, 2], [1, -1, 2], [0, 0, 2.5]]),
    "fc1.bias": np.float32([0, 0, 0, 0]),
    "fc2.weight": np.float32([[0, 0, 0, 99], [0, 0, 0, 98]]),
    "fc2.bias": np.float32([0, 0]),
}
"""L1 norms 3, 4, 4, 2.5; L2 norms 3, 2.45, 2.45, 2.5."""

LSTM = trace(LstmNet(), torch.zeros(1, 7, dtype=torch.long))
"""A unit owns a row of each of four gates."""


def scores(criterion: Any, layout: Layout, weights: Arrays) -> Any:
    method = EFLPrune(criterion, macs=1)
    return method.importance(method.begin(layout, weights)[0], weights)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [("l1", [1, 2]), ("l2", [0, 3]), ("similarity", [0, 3])],  # the two alike go first
)
def test_what_is_kept_by_hand(criterion: Any, expected: list[int]) -> None:
    method = EFLPrune(criterion, threshold={"fc1": 2})

    state, weights = method.begin(mlp_layout(), WEIGHTS)

    assert state.plan.keep["fc1"].tolist() == expected
    assert weights is WEIGHTS


@pytest.mark.parametrize("name", ["lstm", "residual", "depthwise", "grouped"])
def test_distances_against_a_naive_loop(name: str) -> None:
    layout = LSTM if name == "lstm" else layout_of(name)
    weights = random_arrays(layout)

    found = scores("similarity", layout, weights)

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


def test_batch_norm_scales_or_l1_where_a_group_has_none() -> None:
    layout = layout_of("residual")
    weights = random_arrays(layout)

    found = scores("bn", layout, weights)

    np.testing.assert_array_equal(found["conv1"], np.abs(weights["norm1.weight"]))
    for name in ("stem", "conv3"):
        np.testing.assert_array_equal(found[name], scores("l1", layout, weights)[name])
    with pytest.raises(AutoFlipError, match="no group of this model has a BatchNorm"):
        scores("bn", mlp_layout(), WEIGHTS)


def test_random_units_differ_by_round_and_seed_and_repeat() -> None:
    layout, target = layout_of("conv_flat"), "even-macs:0.5"
    weights = random_arrays(layout)

    def draw(number: int, seed: int = 0) -> tuple[bool, ...]:
        method = EFLPrune("random", seed=seed, threshold=target)
        state, _ = method.begin(layout, weights)
        done = carried_out(method.order(state, number, [0]), [], weights, number)
        return tuple(method.learn(state, done)[0].plan.alive)

    assert len({draw(r) for r in range(20)}) > 15
    assert len({draw(1, seed) for seed in range(20)}) > 15
    assert draw(3) == draw(3)


def test_magnitude_masks_single_weights_by_hand() -> None:
    method = EFLPrune("magnitude", threshold=f"{26 / 16}x")

    plan = method.begin(mlp_layout(), WEIGHTS)[0].plan

    # 16 of 26 are left: 6 biases and half of 12 and of 8 weights, the earlier of ties.
    assert plan.alive.all()
    assert plan.num_parameters == 16
    np.testing.assert_array_equal(
        plan.mask["fc1.weight"], [[1, 0, 0], [1, 1, 1], [0, 0, 1], [0, 0, 1]]
    )
    np.testing.assert_array_equal(plan.mask["fc2.weight"], [[1, 1, 0, 1], [0, 0, 0, 1]])


def test_a_plan_is_made_of_the_weights_after_each_round() -> None:
    method, layout = EFLPrune("l1", threshold={"fc1": 2}), mlp_layout()
    state, _ = method.begin(layout, WEIGHTS)
    order = method.order(state, 1, [0, 1])
    later = WEIGHTS | {"fc1.bias": np.float32([50, 0, 0, 40])}

    after, weights = method.learn(state, carried_out(order, [], later))

    assert order.plan is state.plan
    assert (order.who, order.payload, order.untrained) == ("round", "values", "keep")
    assert weights is later
    np.testing.assert_array_equal(after.plan.keep["fc1"], [0, 3])
    assert EFLPrune("l1", evaluates_dense=True).evaluates_dense
    assert not method.evaluates_dense
