"""From files, or the hub, to everybody's tensors; what a broken file says."""

import gzip
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from paper_files import write_all, write_idx
from PIL import Image
from torch.utils.data import TensorDataset

from examples.paper.data import DataError, Examples, load_dataset, to_tensors
from examples.paper.data.examples import VOCABULARY, encode, windows_of
from examples.paper.data.files import READERS, read_idx
from examples.paper.data.partitions import (
    by_owner,
    dirichlet,
    pathological,
    split_node,
)
from examples.paper.tasks import TASKS, Federation, load

FILES = {
    "mnist": "train-images-idx3-ubyte.gz",
    "cifar10": "train_3.webp",
    "cifar100": "labels.npz",
    "femnist": "femnist_leaf_105writers.npz",
    "shakespeare": "bosak_plays_by_role.json.gz",
}
REAL = os.environ.get("FLWR_AUTOFLIP_DATA", "")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mnist", (400, 60)),
        ("cifar10", (50_000, 10_000)),
        ("cifar100", (10_000, 10_000)),
        ("femnist", (150, 12)),
        ("shakespeare", (3 * 39, 3 * 9)),
    ],
)
def test_sizes(data_dir: Path, name: str, sizes: tuple[int, int]) -> None:
    train, test = load_dataset(name, data_dir)

    assert (len(train), len(test)) == sizes
    assert len(train.inputs) == sizes[0]
    assert (train.owners is not None) == (name in ("femnist", "shakespeare"))


def test_pixels_and_labels_are_those_of_the_file(data_dir: Path) -> None:
    with Image.open(data_dir / "cifar10" / "train_2.webp") as mosaic:
        pixel = mosaic.convert("RGB").getpixel((7, 3))  # column, row
    train, _ = load_dataset("cifar10", data_dir)
    raw = gzip.decompress((data_dir / "mnist" / FILES["mnist"]).read_bytes())
    digits, _ = load_dataset("mnist", data_dir)

    images, labels = to_tensors("cifar10", train, np.array([10_307])).tensors

    assert tuple(train.inputs[10_307].ravel()) == pixel
    assert digits.inputs[1].tobytes() == raw[800:1584]
    expected = (np.array(pixel) / 255 - (0.4914, 0.4822, 0.4465)) / (
        0.2470,
        0.2435,
        0.2616,
    )
    np.testing.assert_allclose(images.ravel(), expected, rtol=1e-4)
    assert labels.tolist() == [7]
    ink = Examples(np.zeros((1, 28, 28), np.uint8), np.array([61]))
    assert float(to_tensors("femnist", ink).tensors[0].min()) > 5  # bright, as MNIST's


def test_a_label_is_the_symbol_that_follows() -> None:
    text = "".join(np.random.default_rng(0).choice(list("abc"), 250))

    found = windows_of([text, "short"], ["A", "B"])

    assert len(set(VOCABULARY)) == 80
    assert encode("\n }$é☃").tolist() == [0, 1, 79, 1, 1, 1]
    assert found.inputs.shape == found.labels.shape == (3, 80)
    assert found.inputs.ravel().tolist() == encode(text)[:240].tolist()
    assert found.labels.ravel().tolist() == encode(text)[1:241].tolist()
    assert set(found.owners) == {"A"}


# --- Broken files ---


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("share", [None, 0.0, 0.5, 0.99])
def test_a_missing_or_truncated_file_is_one_line_with_a_way_out(
    tmp_path: Path, name: str, share: float | None
) -> None:
    write_all(tmp_path)
    path = tmp_path / name / FILES[name]
    content = path.read_bytes()
    path.unlink()
    if share is not None:
        path.write_bytes(content[: int(share * len(content))])

    with pytest.raises(DataError) as caught:
        load_dataset(name, tmp_path)

    message = str(caught.value)
    assert message.startswith(f"{path}: expected ")
    assert ("got no such file" in message) == (share is None)
    assert "leave --data out" in message
    assert "\n" not in message


def test_sizes_must_match(tmp_path: Path) -> None:
    write_all(tmp_path)
    path = tmp_path / "labels.gz"
    write_idx(path, np.arange(10))
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:-3]))
    write_idx(tmp_path / "mnist" / "train-labels-idx1-ubyte.gz", np.arange(399) % 10)

    with pytest.raises(DataError, match="expected 10 bytes after its header, got 7"):
        read_idx(path, 1)
    with pytest.raises(DataError, match="starts with 00000803, got 00000801"):
        read_idx(path, 3)
    with pytest.raises(DataError, match="expected 400 labels, one an image, got 399"):
        load_dataset("mnist", tmp_path)


# --- The hub ---


def serve(monkeypatch: pytest.MonkeyPatch, **splits: dict) -> None:
    """Let the hub answer with these splits."""
    hub = {name: datasets.Dataset.from_dict(rows) for name, rows in splits.items()}
    answer = datasets.DatasetDict(hub)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: answer)


def test_hub_images_and_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(count: int) -> dict:
        images = [Image.new("RGB", (32, 32), (i, 0, 0)) for i in range(count)]
        return {"img": images, "fine_label": [i % 100 for i in range(count)]}

    serve(monkeypatch, train=rows(6), test=rows(2))
    train, test = load_dataset("cifar100", None)
    assert (len(train), len(test)) == (6, 2)
    assert train.inputs[3, 31, 0].tolist() == [3, 0, 0]
    assert to_tensors("cifar100", test).tensors[0].shape == (2, 3, 32, 32)

    greys = [Image.new("L", (28, 28), i) for i in range(20)]
    labels = {"character": [i % 62 for i in range(20)], "writer_id": ["a", "b"] * 10}
    serve(monkeypatch, train={"image": greys, **labels})
    train, test = load_dataset("femnist", None)
    assert sorted(test.owners) == ["a", "b"]  # a tenth of each writer's
    assert (len(train), len(test)) == (18, 2)


def test_hub_windows_are_those_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(np.random.default_rng(0).choice(list("abcdef"), 3000))
    starts = range(len(text) - 80)
    rows = {
        "character_id": ["LONG"] * len(starts) + ["SHORT"] * 100,
        "x": [text[i : i + 80] for i in starts] + ["x" * 80] * 100,
        "y": [text[i + 80] for i in starts] + ["x"] * 100,
    }
    serve(monkeypatch, train=rows)

    train, test = load_dataset("shakespeare", None)

    assert set(train.owners) == {"LONG"}
    whole = np.concatenate([train.inputs.ravel(), test.inputs.ravel()])
    assert whole.tolist() == encode(text)[: len(whole)].tolist()
    assert len(whole) == 80 * ((len(text) - 1) // 80)


# --- Who has what ---


def labelled(count: int, classes: int = 10) -> Examples:
    return Examples(np.zeros((count, 1), np.uint8), np.arange(count) % classes)


def owned(sizes: dict[str, int]) -> Examples:
    owners = np.repeat(list(sizes), list(sizes.values()))
    return Examples(np.zeros((len(owners), 1), np.uint8), np.zeros(len(owners)), owners)


@pytest.mark.parametrize("partition", [pathological, dirichlet(1.0)])
def test_every_row_has_a_node_and_the_seed_decides_which(partition) -> None:
    examples = labelled(2000)

    whole = partition(examples, 10, 0, None)
    first, again, other = (partition(examples, 10, s, 800) for s in (0, 0, 1))

    assert sorted(np.concatenate(whole)) == list(range(2000))
    assert len(set(np.concatenate(first))) == 800
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))
    if partition is pathological:
        assert [len(set(examples.labels[rows])) for rows in whole] == [2] * 10


def test_nodes_are_people_of_unequal_sizes() -> None:
    examples = owned({"a": 400, "b": 100, "c": 12, "few": 9})

    whole = by_owner(examples, 3, 0, None)
    fewer = by_owner(examples, 3, 0, 256)

    owners = [Counter(examples.owners[rows]) for rows in whole]
    assert owners == [{"a": 400}, {"b": 100}, {"c": 12}]
    assert [len(rows) for rows in fewer] == [200, 50, 10]  # ten at least
    assert all((np.diff(rows) > 0).all() for rows in fewer)
    with pytest.warns(UserWarning, match="5 nodes were asked for, but only 3"):
        assert len(by_owner(examples, 5, 0, None)) == 3


def test_a_node_has_three_parts_that_do_not_overlap() -> None:
    parts = split_node(np.arange(100), seed=0)
    train, validation, test = split_node(np.arange(100), seed=0, later_test=True)

    assert [len(part) for part in parts] == [72, 8, 20]
    assert sorted(np.concatenate(parts)) == list(range(100))
    # Where the test comes later in time, validation does too.
    assert (train.tolist(), validation.tolist()) == ([*range(90)], [*range(90, 100)])
    assert not len(test)


# --- Tasks ---

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


def prints(*parts: TensorDataset) -> list[bytes]:
    return [one.numpy().tobytes() for part in parts for one in part.tensors[0]]


@pytest.mark.parametrize("name", TASKS)
def test_the_papers_scale_is_table_two(name: str) -> None:
    scale = TASKS[name].scales["paper"]

    nodes = {"femnist": (660, 20), "shakespeare": (730, 20)}.get(name, (20, 5))
    assert (scale.nodes, scale.nodes_per_round) == nodes
    assert (scale.rounds, scale.local_epochs, scale.batch_size) == (200, 5, 350)
    assert (scale.lr, scale.server_momentum, scale.width) == (3e-4, 0.9, 1)
    assert (scale.exploration_epochs, scale.threshold) == (150, 0.3)


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

    own = prints(*federation.local_test)
    seen = [*prints(*federation.train, federation.validation), *own]
    if name == "shakespeare":  # the roles' last fifths are the global test
        assert set(prints(federation.test)) == set(own)
    else:
        seen += prints(federation.test)
    assert len(seen) == len(set(seen))


@pytest.mark.real_data
@pytest.mark.skipif(not REAL, reason="FLWR_AUTOFLIP_DATA names no folder")
@pytest.mark.parametrize("name", TASKS)
def test_the_real_files(name: str) -> None:
    scale = TASKS[name].scales["small"]

    federation = load(TASKS[name], scale, 0, Path(REAL))

    assert (federation.num_nodes, len(federation.test)) == (
        scale.nodes,
        scale.test_examples,
    )
    inputs = federation.test.tensors[0].float()
    if name != "shakespeare":
        assert abs(float(inputs.mean())) < 0.1
        assert float(inputs.std()) == pytest.approx(1, abs=0.1)
