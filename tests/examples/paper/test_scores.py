"""Scores of units by hand."""

import numpy as np
import pytest
from models import mlp_layout

from examples.paper.scores import SCORES, Scored, score_units
from flwr_autoflip.methods import RandomUnits
from flwr_autoflip.methods.threshold import MacShare

LAYOUT = mlp_layout()
# Three weights and a bias a neuron of fc1; only neurons 0 and 1 differ from ones.
BEFORE = {
    "fc1.weight": np.float32([[1, 1, 1], [-2, -2, -2], [1, 1, 1], [1, 1, 1]]),
    "fc1.bias": np.float32([1, -2, 1, 1]),
    "fc2.weight": np.ones((2, 4), np.float32),
    "fc2.bias": np.ones(2, np.float32),
}
STEPS = {"fc1.weight": [2, 4, 0, 0], "fc1.bias": [2, 4, 0, 0]}


def moved(sign: float = 1.0) -> dict[str, np.ndarray]:
    """Give the weights after one node's training, times a sign for neuron 1."""
    step = np.float32([2, 4 * sign, 0, 0])
    after = {name: array.copy() for name, array in BEFORE.items()}
    after["fc1.weight"] += step[:, None]
    after["fc1.bias"] += step
    return after


def report(after: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: (after[name] - BEFORE[name]) ** 2 for name in BEFORE}


# Two nodes: both move neuron 0 by 2, they move neuron 1 by 4 and by 0.
ONE, OTHER = moved(), moved(0.0)
AFTER = {name: (ONE[name] + OTHER[name]) / 2 for name in BEFORE}
REPORTS = [report(ONE), report(OTHER)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("initial", [1, 2, 1, 1]),
        ("weights", [3, 0, 1, 1]),  # -2 + 2 is 0
        ("deviation", [4, 8, 0, 0]),  # (4 + 4) / 2, (16 + 0) / 2
        ("movement", [2, 2, 0, 0]),
        ("product", [6, 0, 0, 0]),
        ("relative", [2, 1, 0, 0]),
        ("agreement", [1, 0.5, 0, 0]),  # 4 / 4, 4 / 8, 0 / 0
        ("both", [6, 0, 0, 0]),
    ],
)
def test_by_hand(kind: str, expected: list[float]) -> None:
    scores = score_units(kind, LAYOUT, BEFORE, AFTER, REPORTS)

    np.testing.assert_allclose(scores["fc1"], expected)


def test_all_are_tested() -> None:
    assert set(SCORES) == {
        *("chance", "initial", "weights", "deviation", "movement", "product"),
        *("relative", "agreement", "both"),
    }
    with pytest.raises(ValueError, match="expected one of chance, initial"):
        score_units("luck", LAYOUT, BEFORE, AFTER, REPORTS)


def test_the_best_units_stay() -> None:
    plan = Scored("movement", MacShare(0.5), BEFORE, 0)(0, LAYOUT, AFTER, REPORTS)
    drawn = Scored("chance", MacShare(0.5), BEFORE, 3)(0, LAYOUT, AFTER, REPORTS)

    assert plan.keep["fc1"].tolist() == [0, 1]
    chance = RandomUnits(MacShare(0.5), 3).rank_units(0, LAYOUT, AFTER, [])
    best = np.argsort(chance["fc1"])[-2:]
    assert drawn.keep["fc1"].tolist() == sorted(best)
