"""Plans after some dense rounds, by hand and in a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import batch, build, layout_of, mlp_layout
from torch import nn

from examples.paper.later import LATER, Later, activation_scores
from examples.paper.methods import EVERYTHING
from examples.paper.runs import Run, execute
from flwr_autoflip.graph.layout import Arrays, Layout
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.methods import Previous, RandomUnits
from flwr_autoflip.methods.threshold import MacShare

LAYOUT = mlp_layout()
BEFORE = {
    "fc1.weight": np.float32([[1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]]),
    "fc1.bias": np.float32([1, 2, 3, 4]),
    "fc2.weight": np.ones((2, 4), np.float32),
    "fc2.bias": np.ones(2, np.float32),
}
STEP = np.float32([5, 1, 4, 0])
AFTER = {
    "fc1.weight": BEFORE["fc1.weight"] + STEP[:, None],
    "fc1.bias": BEFORE["fc1.bias"] + STEP,
    "fc2.weight": BEFORE["fc2.weight"],
    "fc2.bias": BEFORE["fc2.bias"],
}
SQUARES = {name: np.zeros_like(array) for name, array in BEFORE.items()}
SQUARES["fc1.weight"][:2] = 1
DENSE = Previous(dense_plan(LAYOUT), 0)


def active(layout: Layout, weights: Arrays) -> dict[str, np.ndarray]:
    return {"fc1": np.float64([0, 0, 1, 1])}


def later(score: str, dense_rounds: int = 2) -> Later:
    return Later(score, dense_rounds, MacShare(0.5), BEFORE, 3, active)


@pytest.mark.parametrize(
    ("score", "kept"),
    [
        ("weights", [0, 2]),  # 6, 3, 7, 4
        ("movement", [0, 2]),  # 5, 1, 4, 0
        ("product", [0, 2]),  # 30, 3, 28, 0
        ("relative", [0, 2]),  # 5, 1/2, 4/3, 0
        ("gradients", [0, 1]),
        ("activations", [2, 3]),
    ],
)
def test_the_best_units_stay(score: str, kept: list[int]) -> None:
    plan = later(score)(3, LAYOUT, AFTER, [SQUARES], DENSE)

    assert plan.keep["fc1"].tolist() == kept


def test_chance_is_random_units() -> None:
    plan = later("chance")(3, LAYOUT, AFTER, [], DENSE)

    expected = RandomUnits(MacShare(0.5), 3)(0, LAYOUT, AFTER, [])
    np.testing.assert_array_equal(plan.keep["fc1"], expected.keep["fc1"])


def test_dense_first_then_once_and_for_all() -> None:
    policy = later("weights")
    held = Plan(LAYOUT, {"fc1": np.array([1, 3])})

    assert policy(0, LAYOUT, BEFORE, []).alive.all()
    assert policy(1, LAYOUT, AFTER, [], DENSE).alive.all()
    assert policy(2, LAYOUT, AFTER, [], DENSE).alive.all()
    assert policy(4, LAYOUT, AFTER, [], Previous(held, 3)) is held


def test_only_gradients_are_asked_for_in_the_last_dense_round() -> None:
    asked = {score: [later(score).probes(n) for n in range(5)] for score in LATER}

    assert asked.pop("gradients") == [False, False, True, False, False]
    assert not np.any(list(asked.values()))


def test_activations_by_hand() -> None:
    model = nn.Sequential()
    model.fc1, model.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)
    inputs = torch.tensor([[1.0, 0, 0], [-3.0, 0, 0]])

    scores = activation_scores(model, LAYOUT, BEFORE, inputs)

    # unit n gives n * x + n: 2n and -2n
    np.testing.assert_allclose(scores["fc1"], [2, 4, 6, 8])


def test_activations_of_convolutions_are_their_channels() -> None:
    model, layout = build("conv_flat"), layout_of("conv_flat")
    inputs = batch("conv_flat")

    scores = activation_scores(model, layout, arrays_of(model), inputs)

    with torch.no_grad():
        expected = model.conv1(inputs).abs().mean((0, 2, 3))
    np.testing.assert_allclose(scores["conv1"], expected.numpy(), 1e-6)


def test_units_without_an_activation_are_an_error() -> None:
    name = "conv1d"
    model, layout = build(name), layout_of(name)

    with pytest.raises(ValueError, match="no linear or 2D convolution"):
        activation_scores(model, layout, arrays_of(model), batch(name))


@pytest.mark.parametrize("score", ["chance", "gradients", "activations"])
def test_a_run_shrinks_after_its_dense_rounds(
    score: str, data_dir: Path, tmp_path: Path
) -> None:
    method = EVERYTHING[f"later-2-{score}"]
    one = Run(tmp_path, "mnist", "tiny", method, 0, str(data_dir))

    execute(one)

    result: dict[str, Any] = one.result()
    macs = np.diff(result["macs"])  # a round each
    assert result["plan"]["macs"] <= 0.25 * result["plan"]["dense_macs"]
    assert min(macs[:2]) > 2 * max(macs[2:])
