"""The whole method without Flower: explore, plan, ship, train small, aggregate."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flwr_autoflip.graph.codec import encode_plan
from flwr_autoflip.graph.pack import expand, pack, pack_small, unpack_small
from flwr_autoflip.graph.shrink import arrays_of, load_arrays_inplace, shrink
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.methods import AutoFlipPolicy
from flwr_autoflip.methods.guidance import deviation
from flwr_autoflip.methods.rescale import rescale_fan_in
from flwr_autoflip.methods.threshold import Mass


class Net(nn.Sequential):
    """A small CNN for 16x16 images of 4 classes."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(16 * 49, 32), nn.ReLU(), nn.Linear(32, 4),
        )  # fmt: skip


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Any training loop will do: this one is five steps of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def main() -> None:
    """Run one round with four nodes of made-up data."""
    torch.manual_seed(0)
    server = Net()
    patterns = torch.randn(4, 1, 16, 16)  # a picture a class, plus noise
    labels = [torch.randint(0, 4, (64,)) for _ in range(4)]
    nodes = [(patterns[y] + torch.randn(64, 1, 16, 16), y) for y in labels]
    layout = trace(server, torch.zeros(1, 1, 16, 16))
    weights, reports = arrays_of(server), []
    for images, labels in nodes:  # explore: Eq. 7
        explorer = Net()
        load_arrays_inplace(explorer, weights)
        train(explorer, images, labels)
        moved = arrays_of(explorer)
        reports.append({n: deviation(weights[n], moved[n]) for n in weights})
    policy = AutoFlipPolicy(Mass(0.7))  # Eqs. 10 and 11, as we read them
    plan = policy(1, layout, weights, reports)
    weights = rescale_fan_in(weights, plan)
    values = pack(weights, plan)  # down: values and a few bytes of plan
    replies = []
    for images, labels in nodes:
        small = shrink(Net(), plan)  # physically smaller
        load_arrays_inplace(small, unpack_small(values, plan))
        train(small, images, labels)
        replies.append(pack_small(arrays_of(small), plan))  # up: values only
    weights = expand(weights, np.mean(replies, axis=0), plan)
    print(f"units kept       {plan.alive.sum()} of {layout.num_units}")
    print(f"parameters kept  {plan.num_parameters} of {layout.num_parameters}")
    print(f"bytes, one way   {values.nbytes} of {4 * layout.num_parameters}")
    print(f"bytes of plan    {len(encode_plan(plan))}, once")
    load_arrays_inplace(server, plan.apply(weights))
    images, labels = nodes[0]
    top1 = (server(images).argmax(1) == labels).float().mean()
    print(f"top-1 on node 0  {top1:.2f}, after one round")


if __name__ == "__main__":
    main()
