"""arXiv:2405.10271v3 by hand: who explores, the mask, what each round asks."""

import warnings
from typing import Any

import numpy as np
import pytest
from models import mlp_layout, random_arrays
from rounds import after_round, carried_out

from flwr_autoflip.errors import AutoFlipError, AutoFlipWarning
from flwr_autoflip.methods import Paper
from flwr_autoflip.methods.guidance import Report

LAYOUT = mlp_layout()
WEIGHTS = random_arrays(LAYOUT)


def explorers() -> dict[int, Report]:
    """Give three nodes' deviations.

    Neuron 0: (0, 1, 5) everywhere -> guidance .4. Neuron 1: (0, 5, 5) -> 2/3. Neuron 2:
    .4 but for one weight, (0, 3, 5) -> .5333. Neuron 3: nobody moved, 0/0 = 0. fc2:
    (0, 1, 5) everywhere -> .4.
    """
    reports = {}
    for node, (usual, strong, special) in enumerate([(0, 0, 0), (1, 5, 3), (5, 5, 5)]):
        weight = np.full((4, 3), usual, np.float32)
        weight[1] = strong
        weight[2, 1] = special
        weight[3] = 0
        reports[node] = {
            "fc1.weight": weight,
            "fc1.bias": np.float32([usual, strong, usual, 0]),
            "fc2.weight": np.full((2, 4), usual, np.float32),
            "fc2.bias": np.full(2, usual, np.float32),
        }
    return reports


METHOD = Paper(threshold=0.45)


def explored() -> Any:
    """What the method knows after all three explored."""
    return after_round(METHOD, LAYOUT, WEIGHTS, explorers())[0]


def test_the_mask_by_hand() -> None:
    state, weights = after_round(Paper(threshold=0.45), LAYOUT, WEIGHTS, explorers())

    # Neuron 0 (.4) and neuron 3 (0) are pruned; of neuron 2 one weight (.5333) is kept.
    # The output layer (.4) is marked like any other; its units are the classes.
    plan = state.plan
    np.testing.assert_array_equal(plan.keep["fc1"], [1, 2])
    np.testing.assert_array_equal(
        plan.small_mask["fc1.weight"], [[True, True, True], [False, True, False]]
    )
    np.testing.assert_array_equal(plan.small_mask["fc1.bias"], [True, False])
    assert not plan.mask["fc2.weight"].any()
    assert weights is WEIGHTS  # what explorers trained is thrown away
    # Mean guidance of own parameters: .4, 2/3, (3 * .4 + .5333) / 4, 0
    scores = Paper().importance(state, WEIGHTS)["fc1"]
    np.testing.assert_allclose(scores, [0.4, 2 / 3, 0.43333, 0], rtol=1e-4)
    # Where all are marked, the best one is kept.
    state, _ = after_round(Paper(threshold=0.9), LAYOUT, WEIGHTS, explorers())
    np.testing.assert_array_equal(state.plan.keep["fc1"], [1])


def test_what_rounds_ask() -> None:
    method = Paper(threshold=0.45)
    state, _ = method.begin(LAYOUT, WEIGHTS)

    first = method.order(state, 1, [1, 2])
    state, _ = method.learn(state, carried_out(first, explorers(), WEIGHTS))
    second = method.order(state, 1, [0, 1, 2])

    assert (first.who, first.payload, first.epochs) == ("all", "deviations", 150)
    assert first.plan.alive.all()
    assert first.whole
    assert (second.who, second.payload, second.epochs) == ("round", "values", None)
    assert (second.untrained, second.regrow, second.whole) == ("zero", False, False)
    assert first.dtype == second.dtype == "float32"
    assert second.plan is state.plan  # everybody takes part
    after, weights = method.learn(state, carried_out(second, explorers(), WEIGHTS))
    assert after is state
    assert weights is WEIGHTS


@pytest.mark.filterwarnings("ignore:T_p")  # two participants
def test_a_round_is_masked_by_its_own_participants() -> None:
    method, state = METHOD, explored()

    order = method.order(state, 5, [1, 2])

    # Of two, guidance is .5 where they differ, and 0 for neurons 1 (5, 5) and 3 (0, 0).
    np.testing.assert_array_equal(order.plan.keep["fc1"], [0, 2])
    assert order.plan.small_mask == {}
    np.testing.assert_array_equal(state.plan.keep["fc1"], [1, 2])  # of all three


@pytest.mark.parametrize("nodes", [[2], [2, 8]])
def test_where_too_few_participants_explored_all_explorers_count(nodes: Any) -> None:
    method, state = METHOD, explored()
    done = carried_out(method.order(state, 2, nodes), [], WEIGHTS, 2)
    if 8 in nodes:  # it explores first, in vain
        assert done.order.who == (8,)
        state, _ = method.learn(state, done)

    assert method.order(state, 2, nodes).plan is state.plan


@pytest.mark.filterwarnings("ignore:T_p")  # two participants
def test_new_nodes_explore_when_they_are_first_sampled() -> None:
    method, state = METHOD, explored()

    asked = method.order(state, 2, [1, 7, 8])
    assert (asked.who, asked.payload, asked.epochs) == ((7, 8), "deviations", 150)
    done = carried_out(asked, {8: explorers()[1]}, WEIGHTS, 2)
    state, _ = method.learn(state, done)

    assert list(state.reports) == [0, 1, 2, 8]
    assert method.order(state, 2, [1, 7, 8]).payload == "values"  # once a round
    assert method.order(state, 3, [1, 7, 8]).who == (7,)  # another try
    assert method.order(state, 3, [1, 8]).payload == "values"


def test_too_few_explorers_are_errors() -> None:
    with pytest.raises(AutoFlipError, match="compares nodes, and 1 reported"):
        after_round(Paper(), LAYOUT, WEIGHTS, [explorers()[1]])
    with pytest.raises(AutoFlipError, match="no node gave a valid report"):
        after_round(Paper(), LAYOUT, WEIGHTS, [])


@pytest.mark.parametrize(
    ("value", "count", "warns"),
    [(0.3, 3, True), (0.2, 5, True), (0.5, 2, True), (0.3, 4, False), (0.21, 5, False)],
)
def test_a_threshold_of_at_most_1_k_warns(
    value: float, count: int, warns: bool
) -> None:
    reports = [*explorers().values(), *explorers().values()][:count]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        after_round(Paper(value), LAYOUT, WEIGHTS, reports)

    about = [w for w in caught if f"1/K = 1/{count}" in str(w.message)]
    assert len(about) == warns


def test_nothing_pruned_warns() -> None:
    reports = [{t.name: np.full(t.shape, i, np.float32) for t in LAYOUT.tensors}
               for i in range(4)]  # fmt: skip

    with pytest.warns(AutoFlipWarning, match="prunes nothing"):
        after_round(Paper(), LAYOUT, WEIGHTS, reports)
