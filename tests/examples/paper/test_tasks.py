"""From a task's name to everybody's tensors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from examples.paper.data import DataError
from examples.paper.tasks import TASKS, Federation, find_task, load

FEW = {
    "mnist": {"nodes": 10, "train_examples": None},
    "cifar10": {"nodes": 10, "train_examples": 2000},
    "cifar100": {"nodes": 10, "train_examples": 2000},
    "femnist": {"nodes": 4, "train_examples": None},
    "shakespeare": {"nodes": 2, "train_examples": 60},
}


def tiny(name: str, data_dir: Path, seed: int = 0) -> Federation:
    """Load a task's small scale, with fewer nodes, from tiny files."""
    scale = replace(TASKS[name].scales["small"], test_examples=40, **FEW[name])
    return load(TASKS[name], scale, seed, data_dir)


def fingerprints(data: TensorDataset) -> list[bytes]:
    return [example.numpy().tobytes() for example in data.tensors[0]]


def test_an_unknown_task_is_one_line_with_the_known_ones() -> None:
    assert find_task("mnist") is TASKS["mnist"]

    with pytest.raises(ValueError, match="got 'imagenet'") as caught:
        find_task("imagenet")

    message = str(caught.value)
    assert all(name in message for name in TASKS)
    assert "\n" not in message


def test_a_task_with_another_partition(data_dir: Path) -> None:
    task = find_task("mnist@dirichlet-0.5")
    scale = replace(task.scales["small"], **FEW["mnist"])

    assert task is find_task("mnist@dirichlet-0.5")  # so that its data stay loaded
    assert task.title == "MNIST, six-layer CNN, dirichlet-0.5"
    own, other = (
        load(TASKS["mnist"], scale, 0, data_dir),
        load(task, scale, 0, data_dir),
    )
    assert max(len(part.tensors[1].unique()) for part in own.train) == 2
    assert max(len(part.tensors[1].unique()) for part in other.train) > 2
    assert fingerprints(own.test) == fingerprints(other.test)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnist@iid", "expected pathological or dirichlet-ALPHA"),
        ("femnist@pathological", "split by its people only"),
        ("letters@pathological", "expected one of mnist"),
    ],
)
def test_a_partition_that_does_not_go(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_task(name)


@pytest.mark.parametrize("name", TASKS)
def test_the_papers_scale_is_table_two(name: str) -> None:
    scale = TASKS[name].scales["paper"]

    nodes = {"femnist": (660, 20), "shakespeare": (730, 20)}.get(name, (20, 5))
    assert (scale.nodes, scale.nodes_per_round) == nodes
    assert (scale.rounds, scale.local_epochs, scale.batch_size) == (200, 5, 350)
    assert (scale.lr, scale.server_momentum, scale.width) == (3e-4, 0.9, 1)
    assert (scale.exploration_epochs, scale.threshold) == (150, 0.3)
    assert scale.weight_decay > 0
    assert scale.train_examples is scale.test_examples is None


@pytest.mark.parametrize("name", TASKS)
def test_the_small_scale_keeps_the_difficulty(name: str) -> None:
    scale = TASKS[name].scales["small"]

    leaf = name in ("femnist", "shakespeare")
    assert scale.nodes_per_round == (10 if leaf else 5)
    assert 50 <= scale.nodes <= 100 if leaf else scale.nodes == 20
    epochs_a_node = (
        scale.rounds * scale.local_epochs * scale.nodes_per_round / scale.nodes
    )
    # 150 of 250 epochs, as in the paper
    assert scale.exploration_epochs == pytest.approx(0.6 * epochs_a_node, abs=0.5)


@pytest.mark.parametrize("name", TASKS)
def test_everybody_has_data_that_the_model_takes(name: str, data_dir: Path) -> None:
    federation, task = tiny(name, data_dir), TASKS[name]

    parts = [*federation.train, *federation.local_test]
    assert federation.num_nodes == len(federation.local_test) == FEW[name]["nodes"]
    for part in [*parts, federation.validation, federation.test]:
        inputs, labels = part.tensors
        assert len(inputs) == len(labels) > 0
        assert inputs.dtype == task.example_input.dtype
        assert 0 <= int(labels.min()) <= int(labels.max()) < task.classes
    assert len(federation.test) <= 40


@pytest.mark.parametrize("name", ["mnist", "femnist", "shakespeare"])
def test_no_example_is_in_two_places(name: str, data_dir: Path) -> None:
    federation = tiny(name, data_dir)

    groups = [*federation.train, *federation.local_test, federation.validation]
    if name != "shakespeare":  # there the roles' last fifths are the global test
        groups.append(federation.test)
    prints = [mark for group in groups for mark in fingerprints(group)]

    assert len(prints) == len(set(prints))


def test_a_roles_last_fifth_is_its_local_test(data_dir: Path) -> None:
    federation = tiny("shakespeare", data_dir)

    own = [mark for part in federation.local_test for mark in fingerprints(part)]
    assert set(fingerprints(federation.test)) == set(own)
    assert not set(own) & {m for part in federation.train for m in fingerprints(part)}


def test_pathological_nodes_keep_two_classes_and_sizes(data_dir: Path) -> None:
    federation = tiny("mnist", data_dir)

    for node in range(federation.num_nodes):
        parts = (federation.train[node], federation.local_test[node])
        labels = torch.cat([part.tensors[1] for part in parts])
        assert len(labels.unique()) == 2
        assert len(parts[1]) / len(labels) == pytest.approx(0.22, abs=0.03)
    total = sum(len(part) for part in [*federation.train, *federation.local_test])
    assert total + len(federation.validation) == 400


def test_the_seed_decides_who_has_what_but_not_the_global_test(data_dir: Path) -> None:
    first, other = (tiny("mnist", data_dir, seed) for seed in (0, 1))
    load.cache_clear()
    again = tiny("mnist", data_dir, 0)

    np.testing.assert_array_equal(*(f.train[3].tensors[0] for f in (first, again)))
    assert fingerprints(first.train[3]) != fingerprints(other.train[3])
    np.testing.assert_array_equal(*(f.test.tensors[0] for f in (first, other)))


def test_a_broken_file_reaches_the_caller(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: exp"):
        load(TASKS["mnist"], TASKS["mnist"].scales["small"], 0, tmp_path)
