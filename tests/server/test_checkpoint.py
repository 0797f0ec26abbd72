"""A server that is stopped anywhere goes on as if it had not been."""

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from federation import EXAMPLE, Client, TinyNet, guided, initial, sgd
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    Result,
    Strategy,
)
from grid import LocalGrid
from torch import nn

from flwr_autoflip import AutoFlip, AutoFlipError, AutoFlipWarning, client_app
from flwr_autoflip.ledger.ledger import Ledger, node_rows, read_ledger
from flwr_autoflip.ledger.rows import NODE_PHASES
from flwr_autoflip.methods import PruneFl
from flwr_autoflip.methods.threshold import Compression

NODES = 5
ROUNDS = 2
HALF = {"fraction_train": 0.5, "fraction_evaluate": 0.5}


class DecayingFedAvg(FedAvg):
    """As in Flower's own examples: the strategy changes the app's configuration."""

    def configure_train(self, server_round: int, arrays, config, grid):  # type: ignore[no-untyped-def]
        if server_round:
            config["lr"] = 0.5 * float(config["lr"])  # type: ignore[arg-type]
        return super().configure_train(server_round, arrays, config, grid)


INNERS: dict[str, Callable[[], Strategy]] = {
    "fedavg": lambda: FedAvg(**HALF),
    "fedavgm": lambda: FedAvgM(server_momentum=0.9, **HALF),
    "fedadam": lambda: FedAdam(eta=0.01, beta_1=0.9, beta_2=0.99, **HALF),
    "decaying": lambda: DecayingFedAvg(**HALF),
    "dp": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAvg(**HALF), noise_multiplier=0.1, clipping_norm=1.0, num_sampled_clients=2
    ),
    "dp-adaptive": lambda: DifferentialPrivacyServerSideAdaptiveClipping(
        FedAvgM(server_momentum=0.9, **HALF),
        noise_multiplier=0.1,
        num_sampled_clients=2,
    ),
}
POLICIES: dict[str, dict[str, Any]] = {
    "autoflip": {"threshold": "mass:0.5", "single_weights": "quantile:0.3"},
    "paper": {
        **{"preset": "paper", "normalization": "layer", "threshold": 0.02},
        **{"exploration_epochs": 1, "exploration_fraction": 0.5},
    },
    "prunefl": {"policy": PruneFl(Compression(2.0), interval=1)},
    "structured-restart": {"policy": "structured-restart", "threshold": "2x"},
    "eflprune-l1": {"policy": "eflprune-l1", "threshold": "2x"},
}


class Noisy(Client):
    """Nodes that draw from the global generators, too."""

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        epochs = 1 + int(torch.randint(0, 2, ()))
        loss = sgd(model, self.node, epochs) + float(config.get("lr", 0.0))
        return 12 + self.node % 3, {"loss": loss}


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Server-side figures, with a drawn one."""
    total = sum(float(np.abs(a.numpy()).sum()) for a in arrays.values())
    return MetricRecord({"sum": total, "drawn": float(torch.rand(()))})


class Killed(BaseException):
    """Nothing that any code catches."""


class Fuse:
    """Count the steps of a run, and end it before one of them.

    What a killed process leaves is its files, and these are all that change them.
    """

    STEPS = (
        *((AutoFlip, f"{what}_train") for what in ("configure", "aggregate")),
        *((AutoFlip, f"{what}_evaluate") for what in ("configure", "aggregate")),
        *((LocalGrid, "send_and_receive"), (Ledger, "_append")),
        *((Path, "replace"), (Path, "unlink"), (os, "fsync")),
    )

    def __init__(self, last: int | None = None) -> None:
        self.names: list[str] = []
        self.last = last

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if len(self.names) == self.last:
                raise Killed(name)
            self.names.append(name)
            return function(*args, **kwargs)

        return wrapped

    @contextmanager
    def burning(self) -> Iterator[None]:
        patches = [
            patch.object(owner, name, self.wrap(name, getattr(owner, name)))
            for owner, name in self.STEPS
        ]
        for each in patches:
            each.start()
        try:
            yield
        finally:
            for each in patches:
                each.stop()


class Trial:
    """Runs of one command in one folder, each with a strategy of its own."""

    def __init__(self, folder: Path, inner: str, policy: str) -> None:
        self.folder, self.inner, self.policy = folder, inner, policy
        self.grid = self.new_grid()
        self.strategy = self.build()

    @staticmethod
    def new_grid() -> LocalGrid:
        return LocalGrid(client_app(Noisy), NODES)

    def build(self) -> AutoFlip:
        self.strategy = AutoFlip(
            INNERS[self.inner](),
            TinyNet(),
            EXAMPLE,
            checkpoint_dir=self.folder,
            **guided(**POLICIES[self.policy]),
        )
        return self.strategy

    def run(
        self, seed: int = 0, fuse: Fuse | None = None, rounds: int = ROUNDS
    ) -> Result:
        fuse = fuse or Fuse()
        strategy = self.build()
        arrays = initial(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        with fuse.burning():
            return strategy.start(
                self.grid,
                arrays,
                num_rounds=rounds,
                train_config=ConfigRecord({"lr": 1.0}),
                evaluate_fn=fuse.wrap("evaluate_fn", evaluate),
            )

    def rows(self) -> list[dict[str, Any]]:
        path = self.folder / "ledger.jsonl"
        return read_ledger(path) if path.exists() else []

    def resume(self) -> Result:
        """The same command again, in a process where nothing is as it was."""
        started = list(self.folder.glob("checkpoint-*.safetensors"))
        return self.run(seed=7 if started else 0)


def assert_equal(one: Result, other: Result) -> None:
    """Bitwise, and all figures of all rounds."""
    assert list(one.arrays) == list(other.arrays)
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array.numpy(), other.arrays[name].numpy(), name)
        assert array.dtype == other.arrays[name].dtype
    assert one.train_metrics_clientapp == other.train_metrics_clientapp
    assert one.evaluate_metrics_clientapp == other.evaluate_metrics_clientapp
    assert one.evaluate_metrics_serverapp == other.evaluate_metrics_serverapp


STRUCTURE = ("seconds", "bytes_down", "plan_bytes")


def assert_same_ledger(
    expected: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> None:
    """Equal but for seconds, lost rows, starts, and plans that had to be sent again."""
    expected, rows = (
        [r for r in some if r.get("status") != "lost" and r["phase"] != "run"]
        for some in (expected, rows)
    )
    assert len(expected) == len(rows)
    for want, row in zip(expected, rows, strict=True):
        for one in (want, row):
            assert set(STRUCTURE) <= set(one) or one["phase"] not in NODE_PHASES
        assert {k: v for k, v in want.items() if k not in STRUCTURE} == {
            k: v for k, v in row.items() if k not in STRUCTURE
        }
        if want["phase"] in NODE_PHASES:
            more = row["plan_bytes"] - want["plan_bytes"]
            assert more >= 0
            assert (row["bytes_down"] > want["bytes_down"]) == (more > 0)


def paid(rows: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    """What nodes did, whatever became of it."""
    keys = ("round", "phase", "node", "bytes_down", "bytes_up", "macs", "seconds")
    nodes = node_rows(rows)
    return Counter(tuple(row[key] for key in keys) for row in nodes)


def check_kill(
    folder: Path, inner: str, policy: str, last: int, expected: Result, ledger: Any
) -> None:
    """Kill before a step, go on, compare with the run that was never stopped."""
    trial = Trial(folder, inner, policy)
    with pytest.raises(Killed):
        trial.run(fuse=Fuse(last))
    before = trial.rows()
    if last % 2:
        trial.grid = trial.new_grid()  # nodes lost what they held

    assert_equal(trial.resume(), expected)

    assert_same_ledger(ledger, trial.rows())
    assert paid(before) <= paid(trial.rows())
    assert trial.rows() == trial.strategy.ledger.rows
    assert not list(folder.glob("*.partial"))


def uninterrupted(
    folder: Path, inner: str, policy: str
) -> tuple[Result, list[dict[str, Any]], list[str]]:
    trial, fuse = Trial(folder, inner, policy), Fuse()
    result = trial.run(fuse=fuse)
    return result, trial.rows(), fuse.names


# --- Kill points ---


@pytest.mark.slow
def test_a_kill_at_any_step_changes_nothing(tmp_path: Path) -> None:
    expected, ledger, steps = uninterrupted(tmp_path / "whole", "fedavgm", "autoflip")

    assert {name for _, name in Fuse.STEPS} | {"evaluate_fn"} == set(steps)
    for last in range(len(steps)):
        folder = tmp_path / f"{last}"
        check_kill(folder, "fedavgm", "autoflip", last, expected, ledger)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inner", "policy"),
    [
        ("fedavg", "paper"),
        ("fedadam", "autoflip"),
        ("fedadam", "structured-restart"),
        ("fedavgm", "structured-restart"),
        ("fedavg", "prunefl"),
        ("decaying", "eflprune-l1"),
    ],
)
def test_any_strategy_and_policy_goes_on(
    tmp_path: Path, inner: str, policy: str
) -> None:
    expected, ledger, steps = uninterrupted(tmp_path / "whole", inner, policy)

    for last in np.linspace(12, len(steps) - 1, 5).astype(int):
        check_kill(tmp_path / f"{last}", inner, policy, int(last), expected, ledger)


def test_killed_again_while_it_goes_on(tmp_path: Path) -> None:
    expected, ledger, steps = uninterrupted(tmp_path / "whole", "fedavgm", "paper")
    trial = Trial(tmp_path / "run", "fedavgm", "paper")

    for seed, last in enumerate((len(steps) // 2, 11, 19, 3, 27)):
        with pytest.raises(Killed):
            trial.run(seed, Fuse(last))

    assert_equal(trial.resume(), expected)
    assert_same_ledger(ledger, trial.rows())
    lost = [row for row in trial.rows() if row.get("status") == "lost"]
    assert lost
    assert all("it was ok" in row["reason"] for row in lost)


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from test_checkpoint import Trial
from grid import LocalGrid

torch.set_num_threads(1)
trial = Trial(Path(sys.argv[1]), "fedavgm", "autoflip")
calls, send = 0, LocalGrid.answer

def answer(self, message):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return send(self, message)

LocalGrid.answer = answer
trial.run()
"""


@pytest.mark.slow
def test_a_process_that_is_killed_outright(tmp_path: Path) -> None:
    """SIGKILL while a node of round 2 trains; here another process goes on."""
    expected, ledger, _ = uninterrupted(tmp_path / "whole", "fedavgm", "autoflip")
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests.parent), str(tests)])

    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "run"), "8"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        timeout=300,
        check=False,
    )

    assert child.returncode == -signal.SIGKILL, child.stderr
    trial = Trial(tmp_path / "run", "fedavgm", "autoflip")
    assert trial.rows()[-1]["round"] == 1
    assert_equal(trial.resume(), expected)
    assert_same_ledger(ledger, trial.rows())


# --- The same command again ---


def test_a_finished_run_gives_its_result_again(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "fedadam", "eflprune-l1")
    expected = trial.run()
    plan = trial.strategy.deployable_plan()
    files = contents(tmp_path)
    trial.grid.log.clear()

    again = trial.resume()

    assert_equal(again, expected)
    assert trial.grid.log == []
    assert contents(tmp_path) == files
    np.testing.assert_array_equal(trial.strategy.deployable_plan().alive, plan.alive)


def test_more_rounds_go_on_from_a_finished_run(tmp_path: Path) -> None:
    longer = Trial(tmp_path / "longer", "fedadam", "autoflip").run(rounds=3)
    trial = Trial(tmp_path / "run", "fedadam", "autoflip")
    trial.run(rounds=2)

    assert_equal(trial.run(seed=5, rounds=3), longer)

    reports = trial.strategy.reports
    assert len(reports) == 2
    with pytest.raises(AutoFlipError, match="is in round 3 already, num_rounds is 2"):
        trial.run(rounds=2)


def test_without_evaluation_on_the_server(tmp_path: Path) -> None:
    def run(folder: str, rounds: int) -> Result:
        strategy = AutoFlip(
            FedAvgM(server_momentum=0.9, fraction_evaluate=0.0),
            TinyNet(),
            EXAMPLE,
            checkpoint_dir=tmp_path / folder,
            **guided(),
        )
        grid = LocalGrid(client_app(Client), NODES)
        random.seed(0)
        return strategy.start(grid, initial(), num_rounds=rounds)

    expected = run("whole", 3)
    run("run", 1)

    assert_equal(run("run", 3), expected)


def test_the_same_object_goes_on_too(tmp_path: Path) -> None:
    """As in a notebook, where the strategy is still there, with half a round in it."""
    trial = Trial(tmp_path / "run", "fedavgm", "autoflip")
    expected, _, steps = uninterrupted(tmp_path / "whole", "fedavgm", "autoflip")
    with pytest.raises(Killed):
        trial.run(fuse=Fuse(steps.index("aggregate_train")))
    trial.grid = trial.new_grid()  # but nobody holds a plan any more

    with patch.object(trial, "build", lambda: trial.strategy):
        again = trial.resume()

    assert_equal(again, expected)


def test_nobody_explores_twice(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "fedavg", "autoflip")
    _, _, steps = uninterrupted(tmp_path / "whole", "fedavg", "autoflip")
    with pytest.raises(Killed):
        trial.run(fuse=Fuse(steps.index("configure_train")))

    trial.resume()

    explored = [row for row in trial.rows() if row["phase"] == "explore"]
    assert [row["status"] for row in explored] == ["ok", "ok"]


def test_what_nodes_saw_of_a_round_is_never_made_again(tmp_path: Path) -> None:
    """Or differential privacy's noise would cancel between the two."""
    trial = Trial(tmp_path, "dp", "autoflip")
    _, _, steps = uninterrupted(tmp_path / "whole", "dp", "autoflip")
    sent = [i for i, name in enumerate(steps) if name == "send_and_receive"]
    with pytest.raises(Killed):
        trial.run(fuse=Fuse(sent[2] + 1))  # while nodes evaluate round 1
    with pytest.raises(AutoFlipError, match="is in round 1 already, num_rounds is 0"):
        trial.run(rounds=0)

    trial.resume()

    rows = [(r["round"], r["phase"], r.get("status")) for r in trial.rows()]
    assert (1, "train", "lost") not in rows
    assert rows.count((1, "train", "ok")) == 2
    assert rows.count((1, "evaluate", "ok")) == 2


def test_other_nodes_after_a_restart_are_new_nodes(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "fedavg", "paper")
    trial.run(rounds=2)
    known = set(trial.strategy.reports)
    grid = trial.new_grid()
    grid.contexts = {node + 1000: state for node, state in grid.contexts.items()}
    for node, context in grid.contexts.items():
        context.node_id = node
    trial.grid = grid

    trial.run(rounds=3)

    late = [r for r in trial.rows() if r["phase"] == "explore" and r["round"] == 3]
    assert {row["node"] for row in late} & known == set()
    assert len(late) == 2
    assert known < set(trial.strategy.reports)


def test_nodes_are_sent_their_plan_again(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "fedavg", "autoflip")
    trial.run(rounds=1)
    held = {row["node"] for row in trial.rows() if row["phase"] == "train"}

    trial.run(rounds=3)

    after = [r for r in trial.rows() if r["phase"] == "train" and r["round"] > 1]
    first = {row["node"]: row for row in reversed(after)}
    assert held & set(first)
    assert all(row["plan_bytes"] > 100 for row in first.values())
    assert all(row["status"] == "ok" for row in after)


# --- Damage ---


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1000] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    expected, ledger, _ = uninterrupted(tmp_path / "whole", "fedavgm", "autoflip")
    trial = Trial(tmp_path / "run", "fedavgm", "autoflip")
    trial.run()
    newest = max((tmp_path / "run").glob("checkpoint-*"))
    damage(newest)

    with pytest.warns(AutoFlipWarning, match=f"{newest.name} .* the checkpoint before"):
        again = trial.resume()

    assert_equal(again, expected)
    assert_same_ledger(ledger, trial.rows())
    assert {r["round"] for r in trial.rows() if r.get("status") == "lost"} == {ROUNDS}


@pytest.mark.parametrize("kind", ["checkpoints", "ledger"])
def test_nothing_whole_is_one_error_and_stays_as_it_is(
    tmp_path: Path, kind: str
) -> None:
    trial = Trial(tmp_path, "fedavg", "autoflip")
    trial.run(rounds=2)
    checkpoints = list(tmp_path.glob("checkpoint-*"))
    if kind == "ledger":
        path = tmp_path / "ledger.jsonl"
        path.write_text(path.read_text().replace('"round": 0', '"round": 1', 1))
    for path in checkpoints if kind == "checkpoints" else []:
        flip(path)
    files = contents(tmp_path)

    with pytest.raises(AutoFlipError, match=r"holds no whole checkpoint: .* delete"):
        trial.resume()

    assert contents(tmp_path) == files


@pytest.mark.parametrize("policy", ["autoflip", "paper"])
def test_damaged_guidance_does_not_stop_a_run(
    tmp_path: Path, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    trial = Trial(tmp_path, "fedavg", policy)
    trial.run(rounds=2)
    lost = min((tmp_path / "guidance").iterdir())
    cut(lost)

    result = trial.run(rounds=3)

    assert f"counts as unexplored: {lost} has" in caplog.text
    assert set(result.train_metrics_clientapp) == {1, 2, 3}


# --- Another run ---


class OtherNet(TinyNet):
    """One more unit in the last hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6 * 16, 9), nn.Linear(9, 3)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": OtherNet()}, "model was [0-9a-f]+, is [0-9a-f]+"),
    "policy": ({"policy": "random"}, r"policy was L1Units\(.*, is RandomUnits\("),
    "option": ({"rescale": False}, "rescale was True, is False"),
    "threshold": ({"threshold": "3x"}, "threshold was '2x', is '3x'"),
    "dtype": ({"value_dtype": "float16"}, "value_dtype was 'float32', is 'float16'"),
    "inner": ({"strategy": FedAvg()}, "strategy was FedAvgM, is FedAvg"),
    "momentum": (
        {"strategy": FedAvgM(server_momentum=0.5)},
        "strategy.server_momentum was 0.9, is 0.5",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_run_is_refused_and_the_folder_stays(
    tmp_path: Path, other: str
) -> None:
    def start(**changes: Any) -> None:
        given: dict[str, Any] = {
            "strategy": FedAvgM(server_momentum=0.9),
            "model": TinyNet(),
            "example_input": EXAMPLE,
            "policy": "l1",
            "threshold": "2x",
            "checkpoint_dir": tmp_path,
        }
        arguments = guided(**given | changes)
        arrays = ArrayRecord(arguments["model"].state_dict())
        strategy = AutoFlip(**arguments)
        strategy.start(LocalGrid(client_app(Client), NODES), arrays, num_rounds=0)

    changes, message = OTHERS[other]
    start()
    files = contents(tmp_path)

    with pytest.raises(AutoFlipError, match=f"holds another run: .*{message}") as error:
        start(**changes)

    assert "\n" not in str(error.value)
    assert contents(tmp_path) == files
    start(strategy=FedAvgM(server_momentum=0.9, min_available_nodes=3))


def test_another_configuration_of_the_app_is_another_run(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "fedavg", "autoflip")
    trial.run(rounds=0)

    with pytest.raises(AutoFlipError, match=r"train_config was {'lr': 1.0}, is {}"):
        trial.build().start(trial.grid, initial(), num_rounds=1)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
