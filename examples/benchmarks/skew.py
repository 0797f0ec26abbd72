"""Nodes that differ a thousandfold, with BatchNorm: who is refused, and rightly?

``python -m examples.benchmarks.skew`` runs four federations of 50 nodes for 20 rounds:
values in 32 and in 8 bits, without and with five nodes that send what would end the
model (minus the model times 9.9, noise, NaN, a negative variance; the last is put
back, not refused). Nodes hold 10 to 10,000 examples, evenly spread by their logarithm,
most of one class and all in a range of the node's own. No honest reply may be refused,
whatever the bad ones send.
"""

import argparse
import logging
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from flwr_autoflip import AutoFlip, AutoFlipClient, client_app
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.methods import L1

from ..inprocess import FIRST_NODE, InProcessGrid

FEATURES, CLASSES, BATCH = 12, 4, 50
FEWEST, MOST = 10, 10_000
DTYPES = ("float32", "int8")
SPOILT = ("minus the model", "noise", "NaN", "negative variance")


class Net(nn.Sequential):
    """Two hidden layers with BatchNorm, 1,028 parameters."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(FEATURES, 24, bias=False),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Linear(24, 24, bias=False),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Linear(24, CLASSES),
        )


def sizes(nodes: int) -> list[int]:
    """Examples of each node, few first."""
    return np.geomspace(FEWEST, MOST, nodes).round().astype(int).tolist()


def examples(node: int, count: int) -> tuple[Tensor, Tensor]:
    """Draw a node's examples: two thirds of one class, moved and stretched."""
    generator = torch.Generator().manual_seed(node)
    centres = torch.randn(
        CLASSES, FEATURES, generator=torch.Generator().manual_seed(99)
    )
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    usual = torch.rand(count, generator=generator) < 2 / 3
    labels = torch.where(usual, node % CLASSES, labels)
    noise = torch.randn(count, FEATURES, generator=generator)
    shift, stretch = torch.randn(2, FEATURES, generator=generator)
    return (centres[labels] + noise) * (1 + 0.3 * stretch) + 0.5 * shift, labels


def is_bad(node: int) -> bool:
    """Tell the tenth of the nodes that is bad, few and many examples alike."""
    return node % 10 == 9 - node // 10 % 10


def spoil(model: nn.Module, kind: str, node: int) -> None:
    """Turn what a node trained into what would end the model."""
    generator = torch.Generator().manual_seed(node)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if kind == "negative variance" and name.endswith("running_var"):
                value.neg_()
            elif kind == "minus the model" and value.is_floating_point():
                value.mul_(1 if "running_var" in name else -9.9)
            elif kind == "noise" and value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator))
            elif kind == "NaN" and name == "6.bias":
                value.fill_(float("nan"))


class Node(AutoFlipClient):
    """One epoch of SGD in training mode; a last batch of one is left out."""

    def __init__(self, context: Context) -> None:
        super().__init__(Net, context)
        self.node = int(context.node_config["partition-id"])
        self.nodes = int(context.node_config["num-partitions"])
        self.bad = bool(context.run_config["bad"]) and is_bad(self.node)

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        """Train, and be bad if this node is."""
        features, labels = examples(self.node, sizes(self.nodes)[self.node])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for batch in torch.arange(len(labels)).split(BATCH):
            if len(batch) > 1:
                optimizer.zero_grad()
                F.cross_entropy(model(features[batch]), labels[batch]).backward()
                optimizer.step()
        if self.bad:
            spoil(model, SPOILT[self.node // 10 % len(SPOILT)], self.node)
        return len(labels), {}


def run(nodes: int, rounds: int, value_dtype: str, bad: bool) -> dict[str, Any]:
    """Run one federation; count who was refused and measure what came of it."""
    torch.manual_seed(0)
    model = Net()
    inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=nodes)
    options = {"method": L1(threshold="2x"), "value_dtype": value_dtype}
    strategy = AutoFlip(inner, model, torch.zeros(2, FEATURES), **options)
    grid = InProcessGrid(client_app(Node), nodes, {"bad": bad})
    arrays = ArrayRecord(model.state_dict())
    result = strategy.start(grid, arrays, num_rounds=rounds)
    counts = {"honest": 0, "honest refused": 0, "bad": 0, "bad refused": 0}
    reasons = set()
    for row in node_rows(strategy.ledger.rows):
        kind = "bad" if bad and is_bad(row["node"] - FIRST_NODE) else "honest"
        counts[kind] += 1
        counts[f"{kind} refused"] += row["status"] != "ok"
        if kind == "honest" and row["reason"]:
            reasons.add(row["reason"])
    small = strategy.deployable_model(result.arrays)
    data = [examples(nodes + node, 200) for node in range(40)]
    with torch.no_grad():
        rights = [(small(x).argmax(1) == y).float().mean() for x, y in data]
    accuracy = round(float(torch.stack(rights).mean()), 3)
    return {**counts, "accuracy": accuracy, "reasons": sorted(reasons)}


def main() -> None:
    """Run the four federations; print who was refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel("ERROR")
    for dtype in DTYPES:
        for bad in (False, True):
            row = run(options.nodes, options.rounds, dtype, bad)
            print(
                f"{dtype}: {row['honest refused']} of {row['honest']} honest replies "
                f"refused, {row['bad refused']} of {row['bad']} bad ones, accuracy "
                f"{row['accuracy']}",
                *row["reasons"][:3],
                sep="\n  ",
            )


if __name__ == "__main__":
    main()
