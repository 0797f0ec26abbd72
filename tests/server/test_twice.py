"""One object that is started twice is as good as two objects."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import realistic
import torch
from federation import EXAMPLE, Client, TinyNet, exploring, initial
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    Result,
    Strategy,
)

from examples.inprocess import InProcessGrid
from flwr_autoflip import AutoFlip, client_app
from flwr_autoflip.graph.codec import encode_plan
from flwr_autoflip.ledger.ledger import node_rows, read_ledger
from flwr_autoflip.methods import Paper, PruneFL, Structured

NODES = 5
HALF = {"fraction_train": 0.6, "fraction_evaluate": 0.6}


class Remembering(FedAvg):
    """A strategy of an app's own: a rate that falls, a list that grows, a generator."""

    def __init__(self) -> None:
        super().__init__(**HALF)
        self.rate = 1.0
        self.seen: list[int] = []
        self.generator = np.random.default_rng(3)

    def configure_train(self, server_round: int, arrays, config, grid):  # type: ignore[no-untyped-def]
        self.rate *= 0.5
        self.seen.append(server_round)
        self.last = server_round
        drawn = float(self.generator.random())
        config = ConfigRecord({"rate": self.rate, "drawn": drawn, "n": len(self.seen)})
        return super().configure_train(server_round, arrays, config, grid)


INNERS: dict[str, Callable[[], Strategy]] = {
    "fedavg": lambda: FedAvg(**HALF),
    "fedavgm": lambda: FedAvgM(server_momentum=0.9, **HALF),
    "fedadam": lambda: FedAdam(eta=0.01, beta_1=0.9, beta_2=0.99, **HALF),
    "fedyogi": lambda: FedYogi(eta=0.01, beta_1=0.9, beta_2=0.99, **HALF),
    "dp-without-noise": lambda: DifferentialPrivacyServerSideAdaptiveClipping(
        FedAvgM(server_momentum=0.9, **HALF),
        noise_multiplier=0.0,
        num_sampled_clients=3,
    ),
    "own": Remembering,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "float32": {"value_dtype": "float32"},
    "random": {"method": "random", "macs": 0.5},
    "autoflip": exploring(),
    "int8": exploring(value_dtype="int8"),
    "paper": {"method": Paper(threshold=0.4, epochs=1)},
    "budgets": exploring(0.9, budgets=True),
    "restart": {"method": Structured(threshold="2x")},
    "prunefl": {"method": PruneFL(threshold="2x", interval=1)},
    "eflprune": {"method": "eflprune-l1"},
}


class Drawing(Client):
    """Nodes draw from the global generator, and look at their configuration."""

    def train(self, model: torch.nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        count, metrics = super().train(model, config)
        told = sum(float(config.get(key, 0)) for key in ("rate", "drawn", "n"))
        return count, {**metrics, "told": told, "drawn": float(torch.rand(()))}


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"sum": sum(float(a.numpy().sum()) for a in arrays.values())})


def build(inner: str = "fedavg", options: str = "autoflip", **more: Any) -> AutoFlip:
    given = {**OPTIONS[options], **more}
    return AutoFlip(INNERS[inner](), TinyNet(), EXAMPLE, **given)


def nodes(options: str = "autoflip") -> InProcessGrid:
    """Give new nodes; with budgets every second one is weaker than the model."""
    grid = InProcessGrid(client_app(Drawing), NODES)
    for node, context in grid.contexts.items():
        if node % 2 and OPTIONS[options].get("budgets"):
            context.node_config["autoflip-budget"] = "macs:0.6"
    return grid


def run(strategy: AutoFlip, grid: InProcessGrid, seed: int = 0) -> dict[str, Any]:
    """Run from a seed; give all that can be asked for afterwards."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    return everything(
        strategy,
        strategy.start(
            grid,
            initial(seed),
            num_rounds=3,
            train_config=ConfigRecord({"lr": 1.0}),
            evaluate_fn=evaluate,
        ),
    )


def everything(strategy: AutoFlip, result: Result) -> dict[str, Any]:
    rows = [
        {key: value for key, value in row.items() if key != "seconds"}
        for row in strategy.ledger.rows
        if row["phase"] != "run"
    ]
    small = strategy.deployable_model(result.arrays).state_dict()
    return {
        "arrays": {n: (a.dtype, a.numpy().tobytes()) for n, a in result.arrays.items()},
        "train": {k: dict(v) for k, v in result.train_metrics_clientapp.items()},
        "nodes": {k: dict(v) for k, v in result.evaluate_metrics_clientapp.items()},
        "server": {k: dict(v) for k, v in result.evaluate_metrics_serverapp.items()},
        "rows": rows,
        "plan": encode_plan(strategy.deployable_plan),
        "small": {name: values.numpy().tobytes() for name, values in small.items()},
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert list(one) == list(other)
    for what, value in one.items():
        assert value == other[what], what


@pytest.mark.filterwarnings("ignore")  # tiny models prune little, and say so
@pytest.mark.parametrize(
    ("inner", "options"),
    [
        *(("fedavg", options) for options in OPTIONS),
        *((inner, "autoflip") for inner in INNERS if inner != "fedavg"),
        ("fedavgm", "restart"),
        ("fedadam", "prunefl"),
        ("fedyogi", "default"),
        ("dp-without-noise", "paper"),
        ("own", "budgets"),
    ],
)
def test_one_object_twice_is_two_objects(inner: str, options: str) -> None:
    kept, strategy = nodes(options), build(inner, options)

    first = run(strategy, kept)
    second = run(strategy, kept)  # nodes keep what they remember
    third = run(strategy, nodes(options))

    other = run(build(inner, options), nodes(options))
    assert_same(first, other)
    assert_same(second, other)
    assert_same(third, other)
    assert {row["status"] for row in node_rows(first["rows"])} == {"ok"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, exploring()], ids=["default", "autoflip"])
def test_unequal_nodes_and_larger_models_too(options: dict[str, Any]) -> None:
    case = "pictures"
    grid = InProcessGrid(realistic.app, len(realistic.SIZES), {"case": case})

    def start(strategy: AutoFlip, grid: InProcessGrid) -> dict[str, Any]:
        random.seed(0)
        torch.manual_seed(0)
        result = strategy.start(grid, realistic.initial(case), num_rounds=2)
        found = everything(strategy, result)
        return {what: repr(value) for what, value in found.items()}  # NaN is as NaN

    strategy = realistic.build(case, **options)
    first, second = (start(strategy, grid) for _ in range(2))

    grid = InProcessGrid(realistic.app, len(realistic.SIZES), {"case": case})
    assert_same(first, start(realistic.build(case, **options), grid))
    assert_same(second, first)


def test_after_a_run_that_broke_off_the_next_is_whole() -> None:
    strategy, grid = build("fedavgm"), nodes()

    def breaks(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if server_round == 2:
            raise KeyboardInterrupt
        return MetricRecord({"loss": 0.5})

    with pytest.raises(KeyboardInterrupt):
        strategy.start(grid, initial(7), num_rounds=3, evaluate_fn=breaks)

    assert_same(run(strategy, grid), run(build("fedavgm"), nodes()))


# --- The ledger's file ---


@pytest.mark.parametrize("kind", ["ledger_dir", "checkpoint_dir"])
def test_building_changes_no_file(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    build(**{kind: folder})
    assert not folder.exists()
    result = build(**{kind: folder}).start(nodes(), initial(), num_rounds=1)
    files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    script = build(**{kind: folder})
    script.deployable_model(result.arrays)
    with pytest.raises(ValueError, match="initial arrays"):
        script.start(nodes(), ArrayRecord(), num_rounds=1)

    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == files
    assert node_rows(read_ledger(folder / "ledger.jsonl"))


def test_a_run_begins_its_ledgers_file_anew(tmp_path: Path) -> None:
    strategy = build(ledger_dir=tmp_path)
    run(strategy, nodes())
    first = read_ledger(tmp_path / "ledger.jsonl")

    run(strategy, nodes())

    rows = read_ledger(tmp_path / "ledger.jsonl")
    assert rows == strategy.ledger.rows
    assert len(rows) == len(first)
