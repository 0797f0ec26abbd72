"""What a method from outside the package has to do, without a server."""

import numpy as np
from lottery import Lottery
from models import mlp_layout, random_arrays
from rounds import run

from flwr_autoflip.graph.layout import Arrays, Layout
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.methods import Method, State


def test_a_method_from_outside_runs_by_its_orders() -> None:
    layout, nodes = mlp_layout(), (4, 7, 9)
    weights = random_arrays(layout)
    asked: list[tuple[int, int]] = []

    def train(
        node: int, arrays: dict[str, np.ndarray], number: int
    ) -> dict[str, np.ndarray]:
        # Neuron i moves by i, in round 1 and before; in round 2 the other way round.
        asked.append((number, node))
        moves = np.float32([0, 1, 2, 3] if number == 1 else [0, 3, 2, 1])
        alive = arrays["fc1.bias"] != 0
        return arrays | {"fc1.bias": arrays["fc1.bias"] + moves * alive}

    state, after, orders = run(Lottery(), layout, weights, nodes, 3, train)

    said = [(order.payload, order.who, order.plan.alive.sum()) for order in orders]
    assert said == [
        ("deviations", "all", 4),
        ("values", "round", 3),
        ("gradients", "round", 3),
        ("values", "round", 2),
    ]
    assert asked == [(n, node) for n in (1, 1, 2, 3) for node in nodes]
    # Neuron 0 moved least, then 3. Round 3 began with the initial weights again.
    assert state.plan.keep["fc1"].tolist() == [1, 2]
    expected = weights["fc1.bias"] + np.float32([0, 3, 2, 0])
    np.testing.assert_allclose(after["fc1.bias"], expected)
    scores = Lottery().importance(state, after)
    assert scores["fc1"].argmax() == 1


def test_the_contract_has_no_more_than_one_function_to_write() -> None:
    class FirstHalf(Method[State]):
        def begin(self, layout: Layout, weights: Arrays) -> tuple[State, Arrays]:
            keep = {g.name: np.arange(-(-g.size // 2)) for g in layout.groups}
            return State(Plan(layout, keep)), weights

    layout, weights = mlp_layout(), random_arrays(mlp_layout())

    state, after, orders = run(FirstHalf(), layout, weights, (0,), 2, lambda n, w, r: w)

    assert [order.plan.alive.sum() for order in orders] == [2, 2]
    sizes = FirstHalf().importance(state, after)["fc1"]
    own = np.abs(np.column_stack([after["fc1.weight"], after["fc1.bias"]])).mean(axis=1)
    np.testing.assert_allclose(sizes, own, rtol=1e-6)
