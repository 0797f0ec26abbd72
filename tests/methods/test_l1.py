"""Methods that explore nothing: L1, random and dense, by hand."""

from typing import Any

import numpy as np
import pytest
from models import layout_of, mlp_layout, random_arrays
from rounds import carried_out

from flwr_autoflip.methods import L1, Dense, Method, Random
from flwr_autoflip.methods.rescale import rescale_fan_in

WEIGHTS = {
    "fc1.weight": np.float32([[1, -1, 1], [0, 0, 0], [-5, 0, 0], [0.5, 0.5, -0.5]]),
    "fc1.bias": np.float32([0, -9, 1, 0]),
    "fc2.weight": np.float32([[0, 0, 0, 99], [0, 0, 0, 99]]),
    "fc2.bias": np.float32([0, 0]),
}
"""Sizes of neurons: 3 + 0, 0 + 9, 5 + 1, 1.5 + 0, over 4; fc2 does not count."""


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"threshold": {"fc1": 2}}, [1, 2]),
        # n neurons have 6n + 2 of 26 parameters and cost 5n of 20 MACs.
        ({"threshold": "1.3x"}, [0, 1, 2]),
        ({"macs": 0.25}, [1]),
        ({}, [1]),
        ({"macs": 0.25, "round_to": 3}, [0, 1, 2]),
    ],
)
def test_the_largest_by_mean_absolute_value_are_kept(
    target: dict[str, Any], expected: list[int]
) -> None:
    state, _ = L1(**target).begin(mlp_layout(), WEIGHTS)

    np.testing.assert_array_equal(state.plan.keep["fc1"], expected)


@pytest.mark.parametrize("make", [L1, Random])
def test_one_plan_for_the_run_and_weights_rescaled_once(make: Any) -> None:
    layout = layout_of("conv_flat")
    weights = random_arrays(layout)
    method: Method[Any] = make(macs=0.5)

    state, start = method.begin(layout, weights)
    order = method.order(state, 7, [1, 2])
    after = method.learn(state, carried_out(order, [{}], start, 7))

    assert order.plan is state.plan
    assert (order.who, order.payload, order.whole) == ("round", "values", False)
    assert after == (state, start)
    for name, array in rescale_fan_in(weights, state.plan).items():
        np.testing.assert_array_equal(start[name], array)
    assert make(macs=0.5, rescale=False).begin(layout, weights)[1] is weights


def test_importance_follows_the_weights_and_random_draws_do_not() -> None:
    layout = mlp_layout()
    l1, random = L1(), Random(seed=3)
    later = WEIGHTS | {"fc1.bias": np.float32([50, 0, 0, 40])}
    one, other = l1.begin(layout, WEIGHTS)[0], random.begin(layout, WEIGHTS)[0]

    np.testing.assert_allclose(
        l1.importance(one, WEIGHTS)["fc1"], [3 / 4, 9 / 4, 6 / 4, 1.5 / 4]
    )
    assert l1.importance(one, later)["fc1"].argmax() == 0
    np.testing.assert_array_equal(
        random.importance(other, WEIGHTS)["fc1"], random.importance(other, later)["fc1"]
    )


# --- Random units ---


def drawn(method: Random, layout: Any = None) -> tuple[bool, ...]:
    layout = layout or layout_of("conv_flat")
    return tuple(method.begin(layout, random_arrays(layout))[0].plan.alive)


def test_a_seed_gives_one_plan_and_others_give_others() -> None:
    counts = {"conv1": 2, "conv2": 3, "fc1": 4}

    assert drawn(Random(seed=3)) == drawn(Random(seed=3))
    assert len({drawn(Random(seed=s, threshold=counts)) for s in range(20)}) > 15


def test_every_unit_has_the_same_chance() -> None:
    one = {"fc1": 1}

    times = sum(
        np.array(drawn(Random(seed=s, threshold=one), mlp_layout())) * 1
        for s in range(400)
    )

    # 100 each; the standard deviation is sqrt(400 * 1/4 * 3/4) = 8.7.
    assert abs(times - 100).max() < 5 * 8.7


# --- Dense ---


def test_dense_keeps_everything() -> None:
    state, start = Dense().begin(mlp_layout(), WEIGHTS)

    assert state.plan.num_parameters == mlp_layout().num_parameters
    assert state.plan.mask == {}
    assert start is WEIGHTS
