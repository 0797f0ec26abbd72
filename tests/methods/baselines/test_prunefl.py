"""PruneFL's adjustment, by hand and against every other choice; and its rounds."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from models import mlp_layout, random_arrays
from rounds import after_round, carried_out

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.methods import Order, PruneFL
from flwr_autoflip.methods.base import Explored
from flwr_autoflip.methods.baselines.prunefl import RoundTime, adjust

LAYOUT = mlp_layout()
WEIGHTS = random_arrays(LAYOUT)


def test_adjustment_by_hand() -> None:
    weights = {"a": np.array([4.0, -1, 3, 2, 0]), "b": np.array([[0.5, 6]])}
    squares = {"a": np.array([1, 6, 2, 0.5, 3]), "b": np.array([[9.0, 1]])}
    squares["bias"] = np.array([2.0])
    mask = {"a": weights["a"] != 0, "b": np.array([[False, True]])}

    new = adjust(weights, squares, mask, {"a": 1.0, "b": 4.0}, 2.0, 0.5)

    # Half of a's four: -1 and 2 are candidates. 4 and 3 are kept, and b's 6: int(0.5)
    # is none. Gain 1 + 2 + 1 + 2 (bias) = 6 over 2 + 1 + 1 + 4 = 8 seconds: .75. In
    # order of gain a second: 6 -> 12 / 9 = 1.33; 3 -> 15 / 10 = 1.5; b: 9 / 4 = 2.25
    # -> 24 / 14 = 1.71; .5 is less than that and is pruned.
    np.testing.assert_array_equal(new["a"], [True, True, True, False, True])
    np.testing.assert_array_equal(new["b"], [[True, True]])


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_of_candidates_has_a_larger_ratio(seed: int) -> None:
    generator = np.random.default_rng(seed)
    weights = {n: generator.standard_normal(5) for n in ("a", "b")}
    squares = {n: generator.exponential(size=5) for n in ("a", "b", "rest")}
    mask = {n: generator.random(5) < 0.6 for n in ("a", "b")}
    mask["a"][0] = mask["b"][0] = True
    time = {"a": 0.3, "b": 1.1}

    new = adjust(weights, squares, mask, time, 2.0, 0.4)

    def ratio(choice: dict[str, np.ndarray]) -> float:
        gain = squares["rest"].sum() + sum(
            squares[n][m].sum() for n, m in choice.items()
        )
        return gain / (2.0 + sum(time[n] * m.sum() for n, m in choice.items()))

    always = {}
    for name, used in mask.items():
        order = sorted(np.flatnonzero(used), key=lambda i, n=name: abs(weights[n][i]))
        always[name] = set(order[int(0.4 * len(order)) :])
        assert always[name] <= set(np.flatnonzero(new[name]))
    best = 0.0
    for bits in product([False, True], repeat=10):
        choice = {"a": np.array(bits[:5]), "b": np.array(bits[5:])}
        if all(always[n] <= set(np.flatnonzero(m)) for n, m in choice.items()):
            best = max(best, ratio(choice))
    assert ratio(new) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("kept", [2, 3, 5, 8, 10])
def test_a_number_of_weights_is_met_exactly(kept: int) -> None:
    generator = np.random.default_rng(kept)
    weights = {n: generator.standard_normal(5) for n in ("a", "b")}
    squares = {n: generator.exponential(size=5) for n in ("a", "b")}
    mask = {n: np.array([True, True, True, False, False]) for n in ("a", "b")}

    new = adjust(weights, squares, mask, {"a": 1.0, "b": 1.0}, 1.0, 0.3, kept)

    assert sum(m.sum() for m in new.values()) == kept
    assert all(m.any() for m in new.values())


def test_with_a_number_gradients_still_choose_among_candidates() -> None:
    weights = {"w": np.array([5.0, 4.0, 1.0, 0.0, 0.0])}
    squares = {"w": np.array([0.0, 0.0, 1.0, 3.0, 2.0])}
    mask = {"w": np.array([True, True, True, False, False])}

    new = adjust(weights, squares, mask, {"w": 1.0}, 1.0, 1 / 3, kept=3)

    np.testing.assert_array_equal(new["w"], [True, True, False, True, False])


# --- The method ---


def report(**squares: object) -> dict[str, np.ndarray]:
    full = {t.name: np.zeros(t.shape, np.float32) for t in LAYOUT.tensors}
    return full | {n.replace("_", "."): np.float32(s) for n, s in squares.items()}  # type: ignore


MOVED = report(
    fc1_weight=[[1, 0, 2], [0, 0, 0], [3, 3, 3], [0, 1, 0]],
    fc2_weight=[[1, 1, 1, 1], [0, 0, 0, 1]],
)


def adjusted(
    method: PruneFL,
    plan: Plan,
    reports: list[Any],
    number: int = 50,
    weights: Any = None,
    examples: Any = (),
) -> Plan:
    """Let it learn from a gradient request of a round."""
    order = Order(plan, payload="gradients")
    ones = {t.name: np.ones(t.shape, np.float32) for t in LAYOUT.tensors}
    done = carried_out(order, reports, weights or ones, number, examples)
    state, after = method.learn(Explored(plan, explored=True), done)
    assert after is done.weights
    return state.plan


def test_what_did_not_move_at_the_one_client_is_pruned() -> None:
    state, weights = after_round(PruneFL(), LAYOUT, WEIGHTS, [MOVED])

    plan = state.plan
    assert weights is WEIGHTS
    assert plan.alive.all()  # no unit is pruned
    np.testing.assert_array_equal(plan.mask["fc1.weight"], MOVED["fc1.weight"] > 0)
    np.testing.assert_array_equal(plan.mask["fc2.weight"], MOVED["fc2.weight"] > 0)
    assert set(plan.mask) == {"fc1.weight", "fc2.weight"}  # biases are all kept
    assert plan.num_parameters == 6 + 5 + 4 + 2
    # A tensor that did not move at all keeps its largest weight.
    still = report(fc1_weight=np.ones((4, 3)))
    weights = WEIGHTS | {"fc2.weight": np.float32([[1, 2, 3, 4], [5, 6, -9, 8]])}
    state, _ = after_round(PruneFL(), LAYOUT, weights, [still])
    assert np.argwhere(state.plan.mask["fc2.weight"]).tolist() == [[1, 2]]


def test_what_rounds_ask() -> None:
    method = PruneFL()
    state, _ = method.begin(LAYOUT, WEIGHTS)

    first = method.order(state, 1, [3, 4])
    state, _ = method.learn(state, carried_out(first, [MOVED], WEIGHTS))
    later = {r: method.order(state, r, [3, 4]) for r in range(1, 151)}

    assert (first.who, first.payload, first.dtype) == (1, "values", "float32")
    assert first.whole
    assert first.plan.alive.all()
    asks = [r for r, order in later.items() if order.payload == "gradients"]
    assert asks == [50, 100, 150]
    assert all(order.plan is state.plan for order in later.values())
    done = carried_out(later[7], [MOVED], WEIGHTS, 7)
    assert method.learn(state, done) == (state, WEIGHTS)  # nothing to adjust to
    with pytest.raises(AutoFlipError, match="no node can carry the dense model"):
        after_round(method, LAYOUT, WEIGHTS, [])


def test_gradients_adjust_the_mask() -> None:
    weights = {t.name: np.ones(t.shape, np.float32) for t in LAYOUT.tensors}
    weights["fc1.weight"][0, 0] = 0.1  # the only candidate: int(0.1 x 11) is 1
    used = np.ones((4, 3), bool)
    used[3, 2] = False
    held = Plan(LAYOUT, dense_plan(LAYOUT).keep, {"fc1.weight": used})
    nodes = [
        report(fc1_weight=np.eye(4, 3), fc1_bias=np.ones(4)),
        report(fc1_weight=4 * np.eye(4, 3)[::-1], fc1_bias=np.ones(4)),
    ]

    method = PruneFL(fraction=0.1, time=RoundTime(1.0, 0.1, 0.0))
    plan = adjusted(method, held, nodes, weights=weights)

    # Without the candidates: gain 8 (biases) + 1 + 4 + 1 + 4 (the diagonals without
    # [0, 0], a candidate); at [3, 2] nothing is gained. 18 / (1 + .1 x 18) = 6.4 a
    # second; the candidate [0, 0] gains 1 / .1 = 10 a second and is kept.
    assert plan.mask["fc1.weight"][0, 0]
    assert not plan.mask["fc1.weight"][3, 2]
    lower = [report(fc1_weight=0.5 * np.eye(4, 3)[::-1], fc1_bias=9 * np.ones(4))]
    again = adjusted(method, held, lower, weights=weights)
    assert not again.mask["fc1.weight"][0, 0]


def test_nodes_gradients_weigh_as_much_as_their_examples() -> None:
    one, other = np.zeros((4, 3)), np.zeros((4, 3))
    one[0, 0], other[0, 1] = 3, 2
    reports = [report(fc1_weight=one), report(fc1_weight=other)]
    pruned = np.ones((4, 3), bool)
    pruned[0, :2] = False  # candidates, of which the threshold leaves room for one
    held = Plan(LAYOUT, dense_plan(LAYOUT).keep, {"fc1.weight": pruned})
    method = PruneFL(threshold=f"{26 / 25}x", fraction=0.0)

    alike = adjusted(method, held, reports)
    weighed = adjusted(method, held, reports, examples=[1, 2])

    np.testing.assert_array_equal(alike.mask["fc1.weight"][0], [True, False, True])
    np.testing.assert_array_equal(weighed.mask["fc1.weight"][0], [False, True, True])


def test_the_ratio_of_candidates_halves() -> None:
    nothing, dense = [report(fc1_bias=np.ones(4))], dense_plan(LAYOUT)

    early, later = (
        adjusted(PruneFL(fraction=0.5, half_life=life), dense, nothing)
        for life in (1e9, 50.0)
    )

    assert early.mask["fc1.weight"].sum() == 12 - 5  # just below a half of 12
    assert later.mask["fc1.weight"].sum() == 12 - 3
    assert later.mask["fc2.weight"].sum() == 8 - 2


def test_compression_counts_all_parameters() -> None:
    method = PruneFL(threshold="2x")

    state, _ = after_round(method, LAYOUT, WEIGHTS, [MOVED])
    later = adjusted(method, state.plan, [MOVED], weights=WEIGHTS)

    assert state.plan.num_parameters == later.num_parameters == 26 // 2  # 6 are biases
    with pytest.raises(AutoFlipError, match="6 of 26 parameters are biases"):
        PruneFL(threshold="4x").begin(LAYOUT, WEIGHTS)


def test_time_is_near_what_the_authors_measured() -> None:
    # configs/femnist.py: 5 steps, seconds a weight; 14 x 14 places and 1 place.
    times = RoundTime()

    for places, a_step, within in ((196, 7.09885e-6, 1e-3), (1, 1.927e-7, 0.15)):
        assert times.per_value + places * times.per_mac == pytest.approx(
            5.5616e-6 + 5 * a_step, rel=within
        )
