"""The real files, where there are any."""

import os
from pathlib import Path

import pytest

from examples.paper.data import load_dataset
from examples.paper.tasks import TASKS, load

FOLDER = os.environ.get("FLWR_AUTOFLIP_DATA", "")
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(
        not FOLDER, reason="FLWR_AUTOFLIP_DATA names no folder of the real data sets"
    ),
]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mnist", (60_000, 10_000)),
        ("cifar10", (50_000, 10_000)),
        ("cifar100", (10_000, 10_000)),
        ("femnist", (14_708, 4_088)),
    ],
)
def test_official_sizes(name: str, sizes: tuple[int, int]) -> None:
    train, test = load_dataset(name, Path(FOLDER))

    assert (len(train), len(test)) == sizes
    assert set(train["label"]) == set(range(TASKS[name].classes))


def test_people() -> None:
    femnist, _ = load_dataset("femnist", Path(FOLDER))
    plays, _ = load_dataset("shakespeare", Path(FOLDER))

    assert len(set(femnist["writer"])) == 105
    assert len(set(plays["role"])) == 448


@pytest.mark.parametrize("name", TASKS)
def test_pixels_are_normalised_and_nodes_are_as_many_as_asked(name: str) -> None:
    scale = TASKS[name].scales["small"]

    federation = load(TASKS[name], scale, 0, Path(FOLDER))

    assert federation.num_nodes == scale.nodes
    assert len(federation.test) == scale.test_examples
    inputs = federation.test.tensors[0].float()
    if name != "shakespeare":
        assert abs(float(inputs.mean())) < 0.1
        assert float(inputs.std()) == pytest.approx(1, abs=0.1)
