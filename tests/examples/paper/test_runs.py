"""Making runs: FedAvg is FedAvg, every method runs, nothing is overwritten."""

import random
import subprocess
import sys
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.clientapp import ClientApp
from paper_runs import RISING, UNITS, write_run
from torch import nn
from torch.utils.data import TensorDataset

import flwr_autoflip
from examples.inprocess import InProcessGrid
from examples.paper import __main__ as cli
from examples.paper.federation import Setting, node_seed
from examples.paper.methods import METHODS, find_methods
from examples.paper.runs import Run, execute
from examples.paper.training import evaluate, train
from examples.paper.watch import Watched, update_variance
from flwr_autoflip.wire import to_arrayrecord

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def tiny(study: Path, method: str, data_dir: Path | str = "", seed: int = 0) -> Run:
    return Run(study, "mnist", "tiny", METHODS[method], seed, str(data_dir))


# --- Training and sampling ---


def test_a_step_of_training_and_an_evaluation_by_hand() -> None:
    inputs = torch.randn(13, 4)
    data = TensorDataset(inputs, (inputs[:, 0] > 0).long())
    layer, twin = nn.Linear(4, 2), nn.Linear(4, 2)
    twin.load_state_dict(layer.state_dict())
    loss = nn.functional.cross_entropy(twin(inputs), data.tensors[1])
    loss.backward()
    state = torch.get_rng_state()

    got = train(layer, data, epochs=1, batch_size=13, lr=0.1, weight_decay=0.5)

    expected = twin.weight - 0.1 * (twin.weight.grad + 0.5 * twin.weight)
    torch.testing.assert_close(layer.weight, expected)
    assert got == pytest.approx(loss.item())
    assert torch.equal(torch.get_rng_state(), state)
    texts = TensorDataset(torch.eye(3).repeat(2, 1, 1), torch.tensor([[0, 1, 1]] * 2))
    assert evaluate(nn.Identity(), texts)[1] == pytest.approx(2 / 3)


def test_who_is_sampled_depends_on_the_seed_alone() -> None:
    def sampled(seed: int, disturb: bool) -> list[list[int]]:
        strategy = Watched(
            seed, (), fraction_train=0.3, min_train_nodes=3, min_available_nodes=10
        )
        rounds, grid = [], InProcessGrid(ClientApp(), 10)
        for number in (1, 2, 3):
            if disturb:
                random.random()  # as a heartbeat does
            messages = strategy.configure_train(
                number, ArrayRecord(), ConfigRecord(), grid
            )
            rounds.append([message.metadata.dst_node_id for message in messages])
        return rounds

    random.seed(5)
    expected = [random.random() for _ in range(4)]
    random.seed(5)
    first = sampled(7, disturb=True)

    assert first == sampled(7, disturb=False) != sampled(8, disturb=False)
    assert random.random() == expected[3]  # nor do we disturb others


def test_variance_is_the_mean_squared_distance_from_the_mean() -> None:
    def record(weight: list[float], bias: list[float]) -> ArrayRecord:
        arrays = {
            "w": np.float32(weight),
            "b": np.float32(bias),
            "other": np.float32(bias),
        }
        return to_arrayrecord(arrays)

    # Weights 1, 3 around 2 and 2, 8 around 5; biases 0, 4 around 2.
    nodes = [record([1, 2, 7], [0, 1]), record([3, 8, 7], [4, 1])]

    assert update_variance(nodes, ["w", "b"]) == ((1 + 1) + (9 + 9) + (4 + 4)) / 2
    assert update_variance(nodes[:1], ["w"]) == update_variance([], []) == 0


# --- Runs ---


def plain_fedavg(setting: Setting) -> list[float]:
    """Run FedAvg as anybody would write it; give top-1 after every round."""
    task, scale, _ = setting.parts
    data = setting.load()
    random.seed(setting.seed)
    torch.manual_seed(setting.seed)
    model = task.build(scale)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    results = [evaluate(model, data.test)[1]]
    for server_round in range(1, scale.rounds + 1):
        nodes = random.sample(range(data.num_nodes), scale.nodes_per_round)
        mean = {k: torch.zeros_like(v) for k, v in weights.items()}
        total = sum(len(data.train[node]) for node in nodes)
        for node in nodes:
            model.load_state_dict(weights)
            train(
                model,
                data.train[node],
                scale.local_epochs,
                scale.batch_size,
                scale.lr,
                seed=node_seed(setting.seed, server_round, node),
            )
            for name, value in model.state_dict().items():
                mean[name] += value * (len(data.train[node]) / total)
        weights = mean
        model.load_state_dict(weights)
        results.append(evaluate(model, data.test)[1])
    return results


def test_fedavg_is_what_a_plain_loop_computes(data_dir: Path, tmp_path: Path) -> None:
    one = tiny(tmp_path, "fedavg", data_dir, seed=1)

    execute(one)

    assert one.result()["top1"] == pytest.approx(plain_fedavg(one.setting()), abs=1e-5)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, so that FedAvg and AutoFLIP are run once."""
    return tmp_path_factory.mktemp("runs")


def task_of(method: str) -> str:
    """Give MNIST, or where BatchNorm is needed a model that has it."""
    return "cifar100" if "-bn" in method else "mnist"


@pytest.mark.filterwarnings("ignore::flwr_autoflip.AutoFlipWarning")
@pytest.mark.parametrize(
    "method",
    [name for name in METHODS if "eflprune" not in name or not name.endswith("-own")],
)
def test_every_method_runs_and_is_booked(
    method: str, data_dir: Path, study: Path
) -> None:
    runs = {
        m.name: Run(study, task_of(method), "tiny", m, 0, str(data_dir))
        for m in find_methods(f"fedavg,autoflip,{method}")
    }
    for one in runs.values():
        if not one.done:
            execute(one)

    result, dense = runs[method].result(), runs["fedavg"].result()
    autoflip = runs["autoflip"].result()
    assert result["lost"] == 0
    assert len(result["top1"]) == runs[method].setting().rounds + 1
    assert result["macs"] == sorted(result["macs"])
    if method == "random":
        assert result["plan"]["units"] == autoflip["plan"]["units"]
    if METHODS[method].copies:
        share = result["plan"]["parameters"] / autoflip["plan"]["parameters"]
        assert 0.7 < share < 1.05  # no method can always hit it to the last unit
    assert (result["exploration"]["macs"] > 0) == METHODS[method].explores
    assert result["plan"]["dense_parameters"] == dense["plan"]["parameters"]


def test_a_seed_repeats_a_run(data_dir: Path, tmp_path: Path) -> None:
    results = []
    for folder in ("a", "b"):
        one = tiny(tmp_path / folder, "guided", data_dir, seed=3)
        execute(one)
        results.append(one.result())

    for key in ("top1", "bytes", "macs", "variances"):
        assert results[0][key] == results[1][key]
    made_with = results[0]["provenance"]
    assert made_with["version"] == flwr_autoflip.__version__
    assert {"commit", "torch", "processor", "date", "device"} <= set(made_with)


def test_a_method_that_cannot_be_applied_says_so(
    data_dir: Path, tmp_path: Path
) -> None:
    one = tiny(tmp_path, "eflprune-bn-own", data_dir)

    execute(one)

    assert "no group of this model has a BatchNorm" in one.result()["refused"]


# --- Folders ---


def test_another_configuration_is_refused_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(tmp_path, "fedavg", RISING, 1) / "run.json"
    before = path.read_bytes()

    with pytest.raises(SystemExit, match="other rounds, settings, threshold; choose"):
        call(monkeypatch, "run", *MNIST, "--out", str(tmp_path))

    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("method", "threshold"), [("prunefl", "10x"), ("prunefl-own", ""), ("fedavg", "")]
)
def test_who_copies_autoflips_size(tmp_path: Path, method: str, threshold: str) -> None:
    plan = {"parameters": 10, "dense_parameters": 100, "units": UNITS}
    write_run(tmp_path, "autoflip", [0.0] * 7, 1, plan=plan)

    run = Run(tmp_path, "mnist", "small", METHODS[method], 0)

    assert run.setting().threshold == threshold


# --- The command line ---


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["examples.paper", *words])
    cli.main()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--task", "mnits"), "error: task: expected one of mnist, .*got 'mnits'"),
        (("--methods", "fedvg"), "error: methods: expected some of all, .*'fedvg'"),
        (("--seeds", "0"), "error: --seeds and --jobs must be at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_makes_nothing(
    words: tuple[str, ...], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    with pytest.raises(SystemExit, match=line) as caught:
        call(monkeypatch, "run", "--out", str(out), *words)

    assert "\n" not in str(caught.value)
    assert not out.exists()


MNIST = ("--task", "mnist", "--methods", "fedavg")


@pytest.mark.slow
def test_the_command_makes_what_is_not_made(data_dir: Path, tmp_path: Path) -> None:
    made = tiny(tmp_path, "fedavg", data_dir)
    execute(made)
    before = made.result()
    command = [sys.executable, "-m", "examples.paper", "run", "--task", "mnist"]
    command += ["--methods", "fedavg,structured", "--scale", "tiny", "--seeds", "1"]

    done = subprocess.run(
        [*command, "--data", str(data_dir), "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert made.result() == before  # seconds included: it was not made again
    for name in ("autoflip", "structured"):
        other = tiny(tmp_path, name, data_dir)
        assert len(other.result()["top1"]) == other.setting().rounds + 1


class Pool(Executor):
    """Runs at once, as told."""

    def __init__(self, failing: str, error: Exception) -> None:
        self.failing, self.error = failing, error
        self.asked: list[str] = []

    def submit(self, execute: Any, run: Run) -> Future[None]:  # type: ignore[override]
        self.asked.append(run.method.name)
        future: Future[None] = Future()
        if run.method.name == self.failing:
            future.set_exception(self.error)
            return future
        run.folder.mkdir(parents=True)
        (run.folder / "run.json").write_text("{}")
        future.set_result(None)
        return future


def make(pool: Pool, study: Path) -> list[str]:
    names = ("fedavg", "autoflip", "prunefl", "prunefl-own")
    return cli.make_all([tiny(study, name) for name in names], pool)


def test_the_night_goes_on_after_a_failure_unless_a_user_must_act(
    tmp_path: Path,
) -> None:
    pool = Pool("autoflip", MemoryError("no room"))

    failed = make(pool, tmp_path / "one")

    assert pool.asked == ["fedavg", "autoflip", "prunefl-own"]
    assert "mnist/autoflip/seed0: MemoryError('no room')" in failed[0]
    assert failed[1:] == ["mnist/prunefl/seed0: AutoFLIP's run failed"]
    with pytest.raises(ValueError, match="no such file"):
        make(Pool("fedavg", ValueError("no such file")), tmp_path / "other")
