"""The FedAvg that set the small scales."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from examples.paper.search import fedavg
from examples.paper.tasks import TASKS, Federation
from examples.paper.training import train


def federation(sizes: tuple[int, ...]) -> Federation:
    def part(count: int) -> TensorDataset:
        inputs = torch.randn(count, 4)
        return TensorDataset(inputs, (inputs[:, 0] > 0).long())

    parts = tuple(part(count) for count in sizes)
    return Federation(parts, parts, part(40), part(40))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rounds_by_hand(momentum: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    start, data = nn.Linear(4, 2), federation((6, 18))
    scale = replace(
        TASKS["mnist"].scales["small"],
        nodes_per_round=2, rounds=2, local_epochs=1, batch_size=50, lr=0.1,
        server_momentum=momentum,
    )  # fmt: skip
    made: list[nn.Module] = []

    def build(self: object, scale: object) -> nn.Module:
        made.append(copy.deepcopy(start))
        return made[-1]

    monkeypatch.setattr(type(TASKS["mnist"]), "build", build)
    weight, velocity = start.weight.detach().clone(), torch.zeros(2, 4)
    bias, bias_velocity = start.bias.detach().clone(), torch.zeros(2)
    hits = []
    for _ in range(2):
        moved = []
        for part in data.train:
            node = copy.deepcopy(start)
            node.load_state_dict({"weight": weight, "bias": bias})
            train(node, part, 1, 50, 0.1)
            moved.append(node)
        step = 0.25 * moved[0].weight + 0.75 * moved[1].weight - weight
        velocity = momentum * velocity + step.detach()
        weight = weight + velocity
        step = 0.25 * moved[0].bias + 0.75 * moved[1].bias - bias
        bias_velocity = momentum * bias_velocity + step.detach()
        bias = bias + bias_velocity
        scores = data.validation.tensors[0] @ weight.T + bias
        hits.append((scores.argmax(1) == data.validation.tensors[1]).float().mean())

    figures = fedavg(TASKS["mnist"], scale, data, seed=0)

    torch.testing.assert_close(made[0].weight, weight)
    torch.testing.assert_close(made[0].bias, bias)
    assert figures["validation"] == pytest.approx(float(sum(hits) / 2))
    assert figures["seconds"] > 0
