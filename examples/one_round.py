"""Federated pruning in five minutes, without Flower: trace, prune, shrink, expand."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flwr_autoflip import expand, methods, shrink, trace
from flwr_autoflip.graph.shrink import arrays_of, load_arrays_inplace


class Net(nn.Sequential):
    """A small CNN for 16x16 images of 4 classes."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(16 * 49, 32), nn.ReLU(), nn.Linear(32, 4),
        )  # fmt: skip


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Any training loop will do: this one is ten steps of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def main() -> None:
    """Run one round with four nodes of made-up data."""
    torch.manual_seed(0)
    patterns = torch.randn(4, 1, 16, 16)  # a picture a class, plus noise
    labels = [torch.randint(0, 4, (64,)) for _ in range(4)]
    nodes = [(patterns[y] + torch.randn(64, 1, 16, 16), y) for y in labels]
    server = Net()

    # Which slices of which tensors live or die together: 16 filters, 32 neurons.
    layout = trace(server, torch.zeros(1, 1, 16, 16))
    print("groups         ", {group.name: group.size for group in layout.groups})

    # A method says which are kept. By hand: Plan(layout, {"0": [...], "4": [...]}).
    state, weights = methods.L1(macs=0.25).begin(layout, arrays_of(server))
    load_arrays_inplace(server, weights)  # rescaled for the inputs that are lost
    plan = state.plan
    print("units kept     ", {name: kept.tolist() for name, kept in plan.keep.items()})

    # Every node trains a smaller model: fewer filters, fewer neurons, no zeros.
    replies = []
    for images, labels in nodes:
        small = shrink(server, plan)
        train(small, images, labels)
        replies.append(arrays_of(small))
    print("a node's model ", small[0], small[4], sep="\n  ")

    # The mean goes back to where it came from; the rest of the weights stays.
    mean = {n: np.mean([reply[n] for reply in replies], axis=0) for n in replies[0]}
    weights = expand(weights, mean, plan)
    print(f"parameters      {plan.num_parameters} of {layout.num_parameters}")

    load_arrays_inplace(server, plan.apply(weights))  # the rest at 0
    images, labels = nodes[0]
    top1 = (server(images).argmax(1) == labels).float().mean()
    print(f"top-1 on node 0 {top1:.2f}, after one round")


if __name__ == "__main__":
    main()
