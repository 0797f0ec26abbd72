"""What one bad node does to the model while it trains: accuracy after the run.

``python -m examples.benchmarks.attacks`` trains the quickstart's digits, at half their
size, spread evenly over 5 or 20 nodes that all take part in every round, with the
default options (the small network, 8 bits). One node is bad. It trains first, and then
sends something else: where a limit stands in its way, as much of it as passes, which it
knows. A cell is the mean of the last five evaluations of the deployable model; in
brackets how many replies of the bad node were refused, and, should that ever happen, of
honest ones. Runs that are in the results already are not made again.
"""

import argparse
import json
import logging
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum, Strategy
from torch import Tensor, nn

from examples.inprocess import InProcessGrid
from flwr_autoflip import AutoFlip, AutoFlipClient, client_app
from flwr_autoflip.server.round.outliers import FACTOR

from .explored import DATASET, LAST
from .robustness import write_table

from quickstart.task import load_dataset  # isort: skip  # explored knows where it is

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

INNER: dict[str, Callable[[int], Strategy]] = {
    "FedAvg": lambda nodes: FedAvg(**_everybody(nodes)),
    "FedMedian": lambda nodes: FedMedian(**_everybody(nodes)),
    "Krum": lambda nodes: Krum(**_everybody(nodes), num_malicious_nodes=1),
    "FedTrimmedAvg": lambda nodes: FedTrimmedAvg(**_everybody(nodes), beta=0.2),
}


def _everybody(nodes: int) -> dict[str, Any]:
    return {"fraction_evaluate": 0.0, "min_available_nodes": nodes}


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
    return seen.honest | {
        name: -seen.honest[name].abs() for name in _named(seen.honest, "running_var")
    }


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


def run(cell: Cell, rounds: int) -> dict[str, Any]:
    """Run a cell; give accuracies and refusals."""
    random.seed(cell.seed)
    torch.manual_seed(cell.seed)
    model = MODELS[cell.model]()
    images, labels = _digits(cell.seed, held_out=True)
    strategy = AutoFlip(INNER[cell.inner](cell.nodes), model, images[:1])
    top1: dict[int, float] = {}

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if rounds - LAST < server_round:
            model.load_state_dict(arrays.to_torch_state_dict())
            with torch.no_grad():
                right = model.eval()(images).argmax(1) == labels
            top1[server_round] = float(right.float().mean())
        return None

    memory = Memory()
    app = client_app(lambda context: Client(context, cell, memory))
    grid = InProcessGrid(app, cell.nodes)
    first = ArrayRecord(model.state_dict())
    strategy.start(grid, first, num_rounds=rounds, evaluate_fn=evaluate)
    refused = [
        row["node"] == min(grid.get_node_ids())
        for row in strategy.ledger.rows
        if row["phase"] == "train" and row["status"] != "ok"
    ]
    return {
        "top1": statistics.mean(top1.values()),
        "bad_refused": sum(refused),
        "honest_refused": len(refused) - sum(refused),
    }


class Results:
    """Runs in a file of JSON lines."""

    def __init__(self, path: Path, rounds: int) -> None:
        self.path, self.rounds = path, rounds
        path.parent.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            row = json.loads(line)
            self.known[json.dumps(row["cell"])] = row

    def of(self, cell: Cell) -> dict[str, Any]:
        """Give a run, and make it if it is missing."""
        name = {**vars(cell), "rounds": self.rounds}
        key = json.dumps(name)
        if key not in self.known:
            self.known[key] = {"cell": name, **run(cell, self.rounds)}
            with self.path.open("a") as file:
                file.write(json.dumps(self.known[key]) + "\n")
            print(key, f"{self.known[key]['top1']:.3f}", flush=True)
        return self.known[key]


def lines_of(
    results: Results, model: str, nodes: int, inners: list[str], seeds: int
) -> Iterator[list[str]]:
    """Give a table's rows: an attack each, an inner strategy a column."""
    for attack in ATTACKS:
        row = [attack]
        for inner in inners:
            found = [
                results.of(Cell(model, inner, nodes, attack, seed))
                for seed in range(seeds)
            ]
            top1 = statistics.mean(r["top1"] for r in found)
            bad, honest = (
                sum(r[key] for r in found) for key in ("bad_refused", "honest_refused")
            )
            loud = f", {honest} HONEST" if honest else ""
            row.append(f"{top1:.3f} ({bad}{loud})")
        yield row


def main() -> None:
    """Run what is missing; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--nodes", nargs="+", type=int, default=[20, 5])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--inner", nargs="+", default=list(INNER), choices=INNER)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/attacks"))
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel("CRITICAL")
    torch.set_num_threads(1)
    results = Results(options.out / "runs.jsonl", options.rounds)
    for model in options.models:
        for nodes in options.nodes:
            title = f"Top-1, one bad node of {nodes}, {model}"
            path = options.out / f"{model.replace(' ', '-')}-{nodes}.md"
            inners = options.inner
            lines = list(lines_of(results, model, nodes, inners, options.seeds))
            print(write_table(path, title, ["the bad node", *inners], lines))


if __name__ == "__main__":
    main()
