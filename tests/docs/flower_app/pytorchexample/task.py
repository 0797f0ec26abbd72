"""A small CNN for 32x32 images, and made-up images in ten classes."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NODE_EXAMPLES = 100


class Net(nn.Module):
    """Two convolutions, three linear layers, and a number written into forward."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        return self.fc3(x)


def examples(seed: int, count: int) -> TensorDataset:
    """Ten patterns, each with noise on it."""
    patterns = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    noise = torch.randn(count, 3, 32, 32, generator=generator)
    return TensorDataset(patterns[labels] + noise, labels)


def load_data(partition_id: int, num_partitions: int, batch_size: int):
    """Give a node's training and validation data."""
    train = examples(1 + partition_id, NODE_EXAMPLES)
    held_out = examples(1 + num_partitions + partition_id, NODE_EXAMPLES // 4)
    return DataLoader(train, batch_size, shuffle=True), DataLoader(held_out, batch_size)


def load_centralized_dataset():
    """Give the server's test data."""
    return DataLoader(examples(10_000, 500), 100)


def train(net, trainloader, epochs, lr, device):
    """Train in place; give the mean loss."""
    net.to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(epochs):
        for images, labels in trainloader:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


def test(net, testloader, device):
    """Give loss and accuracy."""
    net.to(device).eval()
    loss, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for images, labels in testloader:
            outputs, labels = net(images.to(device)), labels.to(device)
            loss += F.cross_entropy(outputs, labels, reduction="sum").item()
            correct += (outputs.argmax(1) == labels).sum().item()
            count += len(labels)
    return loss / count, correct / count
