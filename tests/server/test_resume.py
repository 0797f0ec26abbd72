"""A server that is stopped anywhere goes on as if it had not been."""

import os
import random
import signal
import stat
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
from federation import EXAMPLE, Client, TinyNet, exploring, initial, sgd
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Result, Strategy
from grid import LocalGrid
from torch import nn

from flwr_autoflip import AutoFlip, AutoFlipError, client_app
from flwr_autoflip.ledger.ledger import Ledger, node_rows, read_ledger
from flwr_autoflip.methods import Paper, PruneFL, Structured

# Two participants have no guidance between 0 and 1 but 1/2, and the paper says so.
pytestmark = pytest.mark.filterwarnings("ignore:T_p = ", "ignore:the plan prunes no")
NODES = 5
ROUNDS = 2
HALF = {"fraction_train": 0.5, "fraction_evaluate": 0.5}


class DecayingFedAvg(FedAvg):
    """As in Flower's own examples: the strategy changes the app's configuration."""

    def configure_train(self, server_round: int, arrays, config, grid):  # type: ignore[no-untyped-def]
        config["lr"] = 0.5 * float(config["lr"])  # type: ignore[arg-type]
        return super().configure_train(server_round, arrays, config, grid)


INNERS: dict[str, Callable[[], Strategy]] = {
    "fedavg": lambda: FedAvg(**HALF),
    "fedavgm": lambda: FedAvgM(server_momentum=0.9, **HALF),
    "fedadam": lambda: FedAdam(eta=0.01, beta_1=0.9, beta_2=0.99, **HALF),
    "decaying": lambda: DecayingFedAvg(**HALF),
}
METHODS: dict[str, dict[str, Any]] = {
    "autoflip": exploring(0.5),
    "paper": {"method": Paper(threshold=0.4, epochs=1)},
    "prunefl": {"method": PruneFL(threshold="2x", interval=1)},
    "restart": {"method": Structured(threshold="2x")},
    "eflprune": {"method": "eflprune-l1"},
}


class Drawing(Client):
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
        *((LocalGrid, "send_and_receive"), (Ledger, "add")),
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

    def __init__(self, folder: Path, inner: str, method: str) -> None:
        self.folder, self.inner, self.method = folder, inner, method
        self.grid = LocalGrid(client_app(Drawing), NODES)
        self.strategy: AutoFlip | None = None

    def build(self) -> AutoFlip:
        options = {"value_dtype": "float32", **METHODS[self.method]}
        inner = INNERS[self.inner]()
        return AutoFlip(
            inner, TinyNet(), EXAMPLE, checkpoint_dir=self.folder, **options
        )

    def run(
        self, seed: int = 0, fuse: Fuse | None = None, rounds: int = ROUNDS
    ) -> Result:
        fuse = fuse or Fuse()
        self.strategy = self.build()
        arrays = initial(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        with fuse.burning():
            return self.strategy.start(
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
        expected = other.arrays[name].numpy()
        np.testing.assert_array_equal(array.numpy(), expected, name, strict=True)
    assert one.train_metrics_clientapp == other.train_metrics_clientapp
    assert one.evaluate_metrics_clientapp == other.evaluate_metrics_clientapp
    assert one.evaluate_metrics_serverapp == other.evaluate_metrics_serverapp


def whole_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give rows without seconds, lost ones and starts."""
    return [
        {key: value for key, value in row.items() if key != "seconds"}
        for row in rows
        if row.get("status") != "lost" and row["phase"] != "run"
    ]


def paid(rows: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    """What nodes did, whatever became of it."""
    keys = ("round", "phase", "node", "bytes_down", "bytes_up", "macs", "seconds")
    nodes = node_rows(rows)
    return Counter(tuple(row[key] for key in keys) for row in nodes)


Expected = tuple[Result, list[dict[str, Any]], list[str]]


def uninterrupted(folder: Path, inner: str, method: str) -> Expected:
    trial, fuse = Trial(folder, inner, method), Fuse()
    result = trial.run(fuse=fuse)
    return result, trial.rows(), fuse.names


def check_kill(trial: Trial, last: int, expected: Expected) -> None:
    """Kill before a step, go on, compare with the run that was never stopped."""
    with pytest.raises(Killed):
        trial.run(fuse=Fuse(last))
    before = trial.rows()

    assert_equal(trial.resume(), expected[0])

    assert whole_rows(trial.rows()) == whole_rows(expected[1])
    assert paid(before) <= paid(trial.rows())
    assert not list(trial.folder.rglob("*.partial"))


# --- Kill points ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    return uninterrupted(tmp_path_factory.mktemp("whole"), "fedavgm", "autoflip")


@pytest.mark.parametrize("name", [*(name for _, name in Fuse.STEPS), "evaluate_fn"])
def test_a_kill_before_any_kind_of_step_changes_nothing(
    tmp_path: Path, whole: Expected, name: str
) -> None:
    places = [i for i, step in enumerate(whole[2]) if step == name]

    check_kill(Trial(tmp_path, "fedavgm", "autoflip"), places[-1], whole)


@pytest.mark.slow
def test_a_kill_at_any_step_changes_nothing(tmp_path: Path, whole: Expected) -> None:
    for last in range(len(whole[2])):
        trial = Trial(tmp_path / f"{last}", "fedavgm", "autoflip")
        check_kill(trial, last, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inner", "method"),
    [
        *(("fedavg", "paper"), ("fedadam", "autoflip"), ("fedavgm", "restart")),
        *(("fedavg", "prunefl"), ("decaying", "eflprune")),
    ],
)
def test_any_strategy_and_method_goes_on(
    tmp_path: Path, inner: str, method: str
) -> None:
    expected = uninterrupted(tmp_path / "whole", inner, method)

    for last in np.linspace(12, len(expected[2]) - 1, 5).astype(int):
        check_kill(Trial(tmp_path / f"{last}", inner, method), int(last), expected)


def test_killed_again_while_it_goes_on(tmp_path: Path) -> None:
    expected, ledger, steps = uninterrupted(tmp_path / "whole", "fedavgm", "paper")
    trial = Trial(tmp_path / "run", "fedavgm", "paper")

    for seed, last in enumerate((len(steps) // 2, 11, 19, 3, 16)):
        with pytest.raises(Killed):
            trial.run(seed, Fuse(last))

    assert_equal(trial.resume(), expected)
    assert whole_rows(trial.rows()) == whole_rows(ledger)
    lost = [row for row in trial.rows() if row.get("status") == "lost"]
    assert all("it was ok" in row["reason"] for row in lost)


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from test_resume import Trial
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
def test_a_process_that_is_killed_outright(tmp_path: Path, whole: Expected) -> None:
    """SIGKILL while a node works; here another process goes on."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parents[1]), str(here.parent), str(here)])
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), "6"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        timeout=300,
        check=False,
    )

    assert child.returncode == -signal.SIGKILL, child.stderr
    trial = Trial(tmp_path, "fedavgm", "autoflip")
    assert_equal(trial.resume(), whole[0])
    assert whole_rows(trial.rows()) == whole_rows(whole[1])


# --- The same command again ---


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_finished_run_gives_its_result_again(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "fedadam", "eflprune")
    expected = trial.run()
    files = contents(tmp_path)
    trial.grid.log.clear()

    again = trial.resume()

    assert_equal(again, expected)
    assert trial.grid.log == []
    assert contents(tmp_path) == files


@pytest.mark.parametrize("method", ["autoflip", "paper"])
def test_more_rounds_go_on_from_a_finished_run(tmp_path: Path, method: str) -> None:
    longer = Trial(tmp_path / "longer", "fedadam", method).run(rounds=3)
    trial = Trial(tmp_path / "run", "fedadam", method)
    trial.run(rounds=2)

    assert_equal(trial.run(seed=5, rounds=3), longer)

    with pytest.raises(AutoFlipError, match="is in round 3 already, num_rounds is 2"):
        trial.run(rounds=2)


def test_without_any_evaluation(tmp_path: Path) -> None:
    def run(folder: str, rounds: int) -> Result:
        inner = FedAvgM(server_momentum=0.9, fraction_evaluate=0.0)
        options = exploring(checkpoint_dir=tmp_path / folder)
        strategy = AutoFlip(inner, TinyNet(), EXAMPLE, **options)
        random.seed(0)
        grid = LocalGrid(client_app(Client), NODES)
        return strategy.start(grid, initial(), num_rounds=rounds)

    expected = run("whole", 3)
    run("run", 1)

    assert_equal(run("run", 3), expected)


def test_the_same_object_goes_on_too(tmp_path: Path, whole: Expected) -> None:
    """As in a notebook, where the strategy is still there, with half a round in it."""
    trial = Trial(tmp_path, "fedavgm", "autoflip")
    with pytest.raises(Killed):
        trial.run(fuse=Fuse(whole[2].index("aggregate_train")))

    with patch.object(trial, "build", lambda: trial.strategy):
        assert_equal(trial.resume(), whole[0])


@pytest.mark.parametrize("method", ["autoflip", "paper"])
def test_nobody_explores_twice(tmp_path: Path, method: str) -> None:
    """What nodes trained in the round that was lost, they train again."""
    trial = Trial(tmp_path / "run", "fedavg", method)
    _, ledger, steps = uninterrupted(tmp_path / "whole", "fedavg", method)
    with pytest.raises(Killed):
        trial.run(fuse=Fuse(steps.index("configure_evaluate")))

    trial.resume()

    explored = [row for row in trial.rows() if row["phase"] == "explore"]
    assert len(explored) == sum(row["phase"] == "explore" for row in ledger)
    assert {row["status"] for row in explored} <= {"ok"}


def test_a_damaged_report_does_not_stop_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trial = Trial(tmp_path, "fedavg", "paper")
    trial.run(rounds=1)
    lost = min((tmp_path / "reports").iterdir())
    lost.write_bytes(lost.read_bytes()[:-7])

    result = trial.run(rounds=3)

    assert f"counts as unexplored: {lost}" in caplog.text
    assert set(result.train_metrics_clientapp) == {1, 2, 3}


def test_another_configuration_of_the_app_is_another_run(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "fedavg", "autoflip")
    trial.run(rounds=1)

    with pytest.raises(AutoFlipError, match=r"train_config was {'lr': 1.0}, is {}"):
        trial.build().start(trial.grid, initial(), num_rounds=1)
    with pytest.raises(AutoFlipError, match=r"strategy was FedAvg, is FedAdam"):
        Trial(tmp_path, "fedadam", "autoflip").run(rounds=1)
    with pytest.raises(AutoFlipError, match=r"method was .*, is Paper"):
        Trial(tmp_path, "fedavg", "paper").run(rounds=1)


# --- For their owner alone ---


@pytest.mark.parametrize("method", ["autoflip", "paper"])
def test_folders_and_files_are_private_while_they_are_written(
    tmp_path: Path, method: str
) -> None:
    seen: dict[str, int] = {}
    replace = Path.replace

    def look(path: Path, target: Path) -> Path:
        seen[path.suffix] = stat.S_IMODE(path.stat().st_mode)
        return replace(path, target)

    before = os.umask(0)
    try:
        with patch.object(Path, "replace", look):
            Trial(tmp_path / "all" / "run", "fedavg", method).run(rounds=1)
    finally:
        os.umask(before)

    found = [p for p in tmp_path.rglob("*") if p.name != "autoflip.lock"]
    assert {p.stat().st_mode & 0o777 for p in found if p.is_dir()} == {0o700}
    assert {p.stat().st_mode & 0o777 for p in found if p.is_file()} == {0o600}
    assert seen == {".partial": 0o600}
