"""What one bad node does to the model while it trains: accuracy after the run.

``python -m examples.benchmarks.attacks`` trains the quickstart's digits, at half their
size, spread evenly over 5 or 20 nodes that all take part in every round, with the
default options (the small network, 8 bits). One node is bad. It trains first, and then
sends something else: where a limit stands in its way, as much of it as passes, which it
knows. A cell is the mean of the last five evaluations of the deployable model; in
brackets how many replies of the bad node were refused, and, should that ever happen, of
honest ones.
"""

import argparse
import logging
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum, Strategy
from torch import Tensor, nn

from flwr_autoflip import AutoFlip, AutoFlipClient, client_app
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.server.round.outliers import FACTOR

from ..inprocess import FIRST_NODE, InProcessGrid
from .robustness import DATASET, LAST

from quickstart.task import load_dataset  # isort: skip  # robustness knows where it is

INSIDE = 0.8 * FACTOR
"""How many times the usual change a bad node makes: a little below the limit."""

BATCH, RATE = 16, 0.2
State = dict[str, Tensor]


class DigitNet(nn.Module):
    """Two convolutions and two linear layers for pictures of half the size."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, padding=2, bias=not norm)
        self.norm1 = nn.BatchNorm2d(16) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(16, 32, 5, padding=2, bias=not norm)
        self.norm2 = nn.BatchNorm2d(32) if norm else nn.Identity()
        self.fc1 = nn.Linear(32 * 3 * 3, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, 1, 14, 14)`` to logits ``(batch, 10)``."""
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "no norm": partial(DigitNet, norm=False),
    "BatchNorm": partial(DigitNet, norm=True),
}
INNER: dict[str, Callable[..., Strategy]] = {
    "FedAvg": FedAvg,
    "FedMedian": FedMedian,
    "Krum": partial(Krum, num_malicious_nodes=1),
    "FedTrimmedAvg": partial(FedTrimmedAvg, beta=0.2),
}


# --- What a bad node sends ---


@dataclass
class Seen:
    """What the bad node knows when it chooses.

    Parameters
    ----------
    received, honest : dict of str to Tensor
        The model that it got, and what honest training made of it.
    before : dict of str to Tensor or None
        The model of the round before.
    usual : dict of str to float
        How far the median node moved in the round before: a mean's name, or ``""`` for
        all parameters, to L2 norm.
    first : dict of str to Tensor
        That of the first round.
    trainable : frozenset of str
    """

    received: State
    honest: State
    before: State | None
    usual: dict[str, float]
    first: State
    trainable: frozenset[str]

    def along(self, direction: State, key: str = "") -> State:
        """Move tensors along a direction, just not too far for the limit."""
        scale = INSIDE * self.usual[key] / max(_norm(direction), 1e-12)
        moved = {n: self.received[n] + scale * x for n, x in direction.items()}
        return self.honest | moved


def _norm(tensors: State) -> float:
    return float(sum(t.double().square().sum() for t in tensors.values()) ** 0.5)


def _named(state: State, end: str) -> frozenset[str]:
    return frozenset(name for name in state if name.endswith(end))


def minus_the_model(seen: Seen, times: float) -> State:
    """Send the model that came, turned round and larger."""
    turned = {name: -times * seen.received[name] for name in seen.trainable}
    return seen.honest | turned


def noise(seen: Seen) -> State:
    """Send noise of the largest size that passes."""
    drawn = {n: torch.randn_like(seen.received[n]) for n in seen.trainable}
    return seen.along(drawn)


def drip(seen: Seen) -> State:
    """Move in every round in one direction, away from the first model."""
    away = {name: -seen.first[name] for name in seen.trainable}
    return seen.along(away)


def undo(seen: Seen) -> State:
    """Go back by what the others' last step brought."""
    if seen.before is None:
        return seen.honest
    back = {n: seen.before[n] - seen.received[n] for n in seen.trainable}
    return seen.along(back)


def negative_variance(seen: Seen) -> State:
    """Turn the sign of BatchNorm's variances; nothing without one."""
    names = _named(seen.honest, "running_var")
    return seen.honest | {name: -seen.honest[name].abs() for name in names}


def running_means(seen: Seen) -> State:
    """Shift BatchNorm's means all one way, as far as passes; nothing without one."""
    shifted = dict(seen.honest)
    for name in _named(seen.honest, "running_mean"):
        ones = {name: torch.ones_like(seen.honest[name])}
        shifted[name] = seen.along(ones, name)[name]
    return shifted


Attack = Callable[[Seen], State]
ATTACKS: dict[str, Attack | None] = {
    "nobody is bad": lambda seen: seen.honest,
    "minus the model": lambda seen: minus_the_model(seen, 1.0),
    "minus the model x 9.9": lambda seen: minus_the_model(seen, 9.9),
    "noise to the limit": noise,
    "slow drip of one direction": drip,
    "undoing the others' steps": undo,
    "negative variance": negative_variance,
    "running means only": running_means,
    "labels flipped (9 - y)": None,
}
"""None: the node is honest but for its labels."""


# --- A run ---


@lru_cache(maxsize=4)
def _digits(seed: int, held_out: bool = False) -> tuple[Tensor, Tensor]:
    """Training digits or those held out, at half the size and shuffled."""
    rows = load_dataset(DATASET, seed)[held_out].with_format("numpy")[:]
    images = torch.from_numpy(rows["image"]).float().unsqueeze(1)
    labels = torch.from_numpy(rows["label"]).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(images, 2)[order], labels[order]


@dataclass(frozen=True)
class Cell:
    """One run: model, inner strategy, number of nodes, attack, seed."""

    model: str
    inner: str
    nodes: int
    attack: str
    seed: int


@dataclass
class Memory:
    """What the bad node remembers, and learns of the others: more than it could."""

    first: State | None = None
    before: State | None = None
    moved: dict[int, list[dict[str, float]]] = field(default_factory=dict)

    def usual(self, server_round: int) -> dict[str, float]:
        """Give how far the median node moved in a round."""
        nodes = self.moved[server_round]
        return {key: statistics.median(m[key] for m in nodes) for key in nodes[0]}


class Client(AutoFlipClient):
    """A node of a cell; node 0 is bad."""

    def __init__(self, context: Context, cell: Cell, memory: Memory) -> None:
        super().__init__(MODELS[cell.model], context)
        self.cell, self.memory = cell, memory
        self.node = int(context.node_config["partition-id"])

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        """Train an epoch; as the bad node, send something else."""
        cell, bad = self.cell, self.node == 0
        images, labels = (x[self.node :: cell.nodes] for x in _digits(cell.seed))
        attack, server_round = ATTACKS[cell.attack], int(config["server-round"])
        if bad and attack is None:
            labels = 9 - labels
        received = _copy(model)
        torch.manual_seed(1000 * cell.seed + 50 * server_round + self.node)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for part in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
        trainable = frozenset(name for name, _ in model.named_parameters())
        honest, memory = _copy(model), self.memory
        moved = _distances(received, honest, trainable)
        memory.moved.setdefault(server_round, []).append(moved)
        if bad and attack is not None:
            memory.first = memory.first or received
            usual = memory.usual(max(1, server_round - 1))
            seen = Seen(received, honest, memory.before, usual, memory.first, trainable)
            model.load_state_dict(attack(seen))
            memory.before = received
        return len(labels), {}


def _distances(one: State, other: State, trainable: frozenset[str]) -> dict[str, float]:
    """Give how far apart two models are, all parameters and each mean."""
    apart = {name: other[name] - one[name] for name in one}
    means = {name: _norm({name: apart[name]}) for name in _named(one, "running_mean")}
    return {"": _norm({name: apart[name] for name in trainable}), **means}


def _copy(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def run(cell: Cell, rounds: int) -> tuple[float, int, int]:
    """Run a cell; give accuracy, and refusals of the bad node and of honest ones."""
    random.seed(cell.seed)
    torch.manual_seed(cell.seed)
    model, memory = MODELS[cell.model](), Memory()
    images, labels = _digits(cell.seed, held_out=True)
    inner = INNER[cell.inner](fraction_evaluate=0.0, min_available_nodes=cell.nodes)
    strategy = AutoFlip(inner, model, images[:1])
    top1: dict[int, float] = {}

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if rounds - LAST < server_round:
            model.load_state_dict(arrays.to_torch_state_dict())
            with torch.no_grad():
                right = model.eval()(images).argmax(1) == labels
            top1[server_round] = float(right.float().mean())
        return None

    app = client_app(lambda context: Client(context, cell, memory))
    grid, first = InProcessGrid(app, cell.nodes), ArrayRecord(model.state_dict())
    strategy.start(grid, first, num_rounds=rounds, evaluate_fn=evaluate)
    lost = [r["node"] for r in node_rows(strategy.ledger.rows) if r["status"] != "ok"]
    bad = lost.count(FIRST_NODE)
    return statistics.mean(top1.values()), bad, len(lost) - bad


def main() -> None:
    """Run everything; print a line an attack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--nodes", nargs="+", type=int, default=[20, 5])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--inner", nargs="+", default=list(INNER), choices=INNER)
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel("CRITICAL")
    torch.set_num_threads(1)
    for model in options.models:
        for nodes in options.nodes:
            print(f"top-1, one bad node of {nodes}, {model}:", *options.inner)
            for attack in ATTACKS:
                cells = []
                for inner in options.inner:
                    seeds = range(options.seeds)
                    found = [
                        run(Cell(model, inner, nodes, attack, seed), options.rounds)
                        for seed in seeds
                    ]
                    top1, bad, honest = zip(*found, strict=True)
                    loud = f", {sum(honest)} HONEST" if sum(honest) else ""
                    cells.append(f"{statistics.mean(top1):.3f} ({sum(bad)}{loud})")
                print(f"{attack}: {'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
