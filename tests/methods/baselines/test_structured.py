"""Automatic structured pruning, by hand."""

from typing import Any

import numpy as np
import pytest
from models import flat_layout, mlp_layout, random_arrays
from rounds import carried_out

from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.methods import Order, Structured
from flwr_autoflip.methods.baselines.structured import StructuredState
from flwr_autoflip.methods.rescale import rescale_fan_in

LAYOUT = mlp_layout()
DENSE = dense_plan(LAYOUT)


def weights(*sums: float) -> dict[str, np.ndarray]:
    """Arrays whose neurons have these sums of |w|, spread over three inputs."""
    full = {t.name: np.zeros(t.shape, np.float32) for t in LAYOUT.tensors}
    full["fc1.weight"] = np.outer(sums, [0.5, -0.25, 0.25]).astype(np.float32)
    full["fc1.bias"][:] = 1000  # kernels only
    full["fc2.weight"][:] = 77
    return full


def left(
    method: Structured,
    *sums: float,
    held: Plan = DENSE,
    since: int = 0,
    after: int = 1,
) -> list[int]:
    """Give what is trained next, after a round with these sums at its end."""
    state = StructuredState(held, following=held, since=since)
    done = carried_out(Order(held), [], weights(*sums), after)
    state, _ = method.learn(state, done)
    return state.following.keep["fc1"].tolist()


@pytest.mark.parametrize(
    ("k", "sums", "expected"),
    [
        # 4, 4, 10, 6: mean 6, variance (4 + 4 + 16 + 0) / 4 = 6, sd 2.45.
        (1.7, (4, 4, 10, 6), [0, 1, 2, 3]),
        (1.6, (4, 4, 10, 6), [0, 1, 3]),  # 4 / 2.45 = 1.63
        (0.5, (4, 4, 10, 6), [3]),  # 2 / 2.45 = .82
        (1.0, (1, 3, 1, 3), [0, 1, 2, 3]),  # all at exactly one sd
        (0.1, (1, 3, 1, 3.5), [1]),  # if all would be pruned, the nearest is kept
        (0.1, (0.3, 0.3, 0.3, 0.3), [0, 1, 2, 3]),
    ],
)
def test_both_tails_are_pruned(k: float, sums: Any, expected: list[int]) -> None:
    assert left(Structured(k=k), *sums) == expected


def test_pruned_units_neither_return_nor_count() -> None:
    held = Plan(LAYOUT, {"fc1": np.array([0, 1, 3])})

    # Of 4, 4, 7 the mean is 5 and sd 1.41; the fourth, 1000, is not there.
    pruned, same = (
        left(Structured(k=k), 4, 4, 1000, 7, held=held, since=2, after=2)
        for k in (1.3, 1.5)
    )
    assert pruned == [0, 1]
    assert same == [0, 1, 3]


def test_columns_of_pruned_filters_do_not_count() -> None:
    layout = flat_layout()
    arrays = {t.name: np.zeros(t.shape, np.float32) for t in layout.tensors}
    arrays["fc1.weight"] = np.float32([[9, 0, 3, 0], [0, 9, 0, 3], [99, 0, 7, 0]])
    held = Plan(layout, {"conv": np.array([1]), "fc1": np.array([0, 1, 2])})
    state = StructuredState(held, following=held)

    state, _ = Structured(k=1.0).learn(state, carried_out(Order(held), [], arrays))

    # Of 3, 3, 7 the mean is 4.33 and sd 1.89: the third is 1.4 away.
    np.testing.assert_array_equal(state.following.keep["fc1"], [0, 1])


def test_rounds_and_patience() -> None:
    method = Structured(k=0.5)

    def prunes(for_round: int, since: int) -> bool:
        return len(left(method, 4, 4, 10, 6, since=since, after=for_round - 1)) < 4

    assert not prunes(1, 0)  # the first round trains the whole model
    assert [prunes(r, 0) for r in (2, 3, 4, 5)] == [True, True, True, False]
    assert [prunes(r, 20) for r in (21, 22, 23, 24)] == [True, True, True, False]
    assert prunes(51, 50)
    assert not prunes(52, 51)


def test_a_target_keeps_those_nearest_the_mean_once() -> None:
    # n neurons have 6n + 2 of 26 parameters and cost 5n of 20 MACs; mean 6.125.
    by_size = Structured(threshold=f"{26 / 14}x")
    sums = (4, 4.5, 10, 6)

    assert left(by_size, *sums) == [1, 3]
    assert left(Structured(macs=0.25), *sums) == [3]
    assert left(Structured(threshold={"fc1": 3}), *sums) == [0, 1, 3]
    held = Plan(LAYOUT, {"fc1": np.array([1, 2, 3])})
    assert left(by_size, *sums, held=held, since=2, after=2) == [1, 2, 3]


@pytest.mark.parametrize("restart", [True, False])
def test_a_smaller_network_starts_afresh_if_asked(restart: bool) -> None:
    method, initial = Structured(k=1.6, restart=restart), random_arrays(LAYOUT)
    state, start = method.begin(LAYOUT, initial)
    first = method.order(state, 1, [0])
    trained = weights(4, 4, 10, 6)

    state, after = method.learn(state, carried_out(first, [], trained))
    second = method.order(state, 2, [0])
    again = method.order(state, 3, [0])  # round 2 was lost
    state, _ = method.learn(state, carried_out(second, [], weights(5, 5, 0, 5), 2))
    third = method.order(state, 3, [0])

    assert start is initial
    assert first.plan.alive.all()
    assert first.weights is None
    assert after is trained  # evaluated as it was trained, before the next round
    assert second.plan.keep["fc1"].tolist() == [0, 1, 3]
    assert again.plan is second.plan
    assert state.plan is second.plan
    assert third.plan is second.plan
    assert third.weights is None  # nothing new was pruned
    if not restart:
        assert second.weights is again.weights is None
        return
    expected = rescale_fan_in(initial, second.plan)
    for order in (second, again):
        assert order.weights is not None
        for name, array in expected.items():
            np.testing.assert_array_equal(order.weights[name], array)
