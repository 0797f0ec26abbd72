"""One object that is started twice is as good as two objects."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import realistic
import torch
from federation import EXAMPLE, Client, TinyNet, guided, initial
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
from flwr_autoflip import AutoFlip, AutoFlipWarning, client_app
from flwr_autoflip.graph.codec import encode_plan
from flwr_autoflip.ledger.ledger import node_rows, read_ledger
from flwr_autoflip.methods import PruneFl
from flwr_autoflip.methods.threshold import Compression

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
GUIDED: dict[str, Any] = guided()
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "guided": GUIDED,
    "warm": guided(warm_start=True),
    "participants": guided(guidance_from="participants"),
    "paper": {
        **{"preset": "paper", "normalization": "layer", "threshold": 0.02},
        **{"exploration_epochs": 1, "exploration_fraction": 0.5},
    },
    "budgets": guided(budgets=True, threshold="mass:0.9"),
    "restart": {"policy": "structured-restart", "threshold": "2x"},
    "grow": {"policy": PruneFl(Compression(2.0), interval=1)},
    "weights": {"policy": "eflprune-l1", "threshold": "2x"},
    "float32": {"value_dtype": "float32"},
    "int8": guided(value_dtype="int8"),
}


class Drawing(Client):
    """Nodes draw from the global generator, and look at their configuration."""

    def train(self, model: torch.nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        count, metrics = super().train(model, config)
        told = sum(float(config.get(key, 0)) for key in ("rate", "drawn", "n"))
        return count, {**metrics, "told": told, "drawn": float(torch.rand(()))}


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"sum": sum(float(a.numpy().sum()) for a in arrays.values())})


def build(inner: str = "fedavg", options: str = "guided", **more: Any) -> AutoFlip:
    given = {**OPTIONS[options], **more}
    return AutoFlip(INNERS[inner](), TinyNet(), EXAMPLE, **given)


def nodes(options: str = "guided") -> InProcessGrid:
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
    result = strategy.start(
        grid,
        initial(seed),
        num_rounds=3,
        train_config=ConfigRecord({"lr": 1.0}),
        evaluate_fn=evaluate,
    )
    return {"result": everything(result), **afterwards(strategy, result)}


def everything(result: Result) -> dict[str, Any]:
    return {
        "arrays": {n: (a.dtype, a.numpy().tobytes()) for n, a in result.arrays.items()},
        "train": {k: dict(v) for k, v in result.train_metrics_clientapp.items()},
        "nodes": {k: dict(v) for k, v in result.evaluate_metrics_clientapp.items()},
        "server": {k: dict(v) for k, v in result.evaluate_metrics_serverapp.items()},
    }


def afterwards(strategy: AutoFlip, result: Result) -> dict[str, Any]:
    rows = [{**row} for row in strategy.ledger.rows if row["phase"] != "run"]
    for row in rows:
        row.pop("seconds", None)
    reports = {
        node: {name: values.tobytes() for name, values in report.items()}
        for node, report in strategy.reports.items()
    }
    small = strategy.deployable_model(result.arrays).state_dict()
    return {
        "rows": rows,
        "reports": reports,
        "plan": encode_plan(strategy.deployable_plan()),
        "plan for": encode_plan(strategy.deployable_plan(result.arrays)),
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
        *((inner, "guided") for inner in INNERS if inner != "fedavg"),
        ("fedavgm", "restart"),
        ("fedadam", "grow"),
        ("fedyogi", "default"),
        ("dp-without-noise", "paper"),
        ("own", "budgets"),
    ],
)
def test_one_object_twice_is_two_objects(inner: str, options: str) -> None:
    kept, strategy = nodes(options), build(inner, options)

    first = run(strategy, kept)
    second = run(strategy, kept)  # nodes hold what the first run gave them
    third = run(strategy, nodes(options))

    other = run(build(inner, options), nodes(options))
    assert_same(first, other)
    assert_same(second, other)
    assert_same(third, other)
    assert {row["status"] for row in node_rows(first["rows"])} == {"ok"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("case", "options"), [("pictures", {}), ("pictures", guided())]
)
def test_unequal_nodes_and_larger_models_too(
    case: str, options: dict[str, Any]
) -> None:
    grid = InProcessGrid(realistic.app, len(realistic.SIZES), {"case": case})

    def start(strategy: AutoFlip, grid: InProcessGrid) -> dict[str, Any]:
        random.seed(0)
        torch.manual_seed(0)
        result = strategy.start(grid, realistic.initial(case), num_rounds=2)
        found = {"result": everything(result), **afterwards(strategy, result)}
        return {what: repr(value) for what, value in found.items()}  # NaN is as NaN

    strategy = realistic.build(case, **options)
    first, second = (start(strategy, grid) for _ in range(2))

    grid = InProcessGrid(realistic.app, len(realistic.SIZES), {"case": case})
    assert_same(first, start(realistic.build(case, **options), grid))
    assert_same(second, first)


# --- What stays between runs, and what cannot be put back ---


def test_after_a_run_that_broke_off_the_next_is_whole() -> None:
    strategy, grid = build("fedavgm"), nodes()

    def breaks(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if server_round == 2:
            raise KeyboardInterrupt
        return MetricRecord({"loss": 0.5})

    with pytest.raises(KeyboardInterrupt):
        strategy.start(grid, initial(7), num_rounds=3, evaluate_fn=breaks)

    assert_same(run(strategy, grid), run(build("fedavgm"), nodes()))


def test_what_the_app_assigns_between_runs_stays() -> None:
    strategy, other = build("own"), build("own")
    run(strategy, nodes())
    inner: Any = strategy.strategy
    own_seen = inner.seen
    for each in (inner, other.strategy):
        each.rate, each.fraction_train = 0.25, 0.4

    for _ in range(2):  # once more: the rate that fell again is the app's, too
        assert_same(run(strategy, nodes()), run(other, nodes()))

    assert own_seen == [0, 1, 2, 3]  # what the app looks at is not emptied
    assert inner.rate == 0.25 * 0.5**4


def test_what_no_copy_can_be_made_of_is_named_once_a_later_run() -> None:
    strategy = build("own")
    strategy.strategy.writer = object()  # type: ignore[attr-defined]
    run(strategy, nodes())

    with pytest.warns(AutoFlipWarning, match=r"this run begins with writer \(object\)"):
        run(strategy, nodes())


def test_what_a_privacy_accountant_counted_stays() -> None:
    class Accountant:
        spent = 0

        def state_dict(self) -> dict[str, Any]:
            return {"spent": self.spent}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.spent = state["spent"]

        def get_privacy_spent(self) -> int:
            return self.spent

    strategy: Any = build("fedavg")
    strategy.strategy.accountant = Accountant()
    run(strategy, nodes())
    strategy.strategy.accountant.spent = 3

    run(strategy, nodes())

    assert strategy.strategy.accountant.spent == 3


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
