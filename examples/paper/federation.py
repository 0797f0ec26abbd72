"""One federated training: the same strategy and client for all methods."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from torch import nn
from torch.utils.data import TensorDataset

from flwr_autoflip import AutoFlip, AutoFlipClient, client_app, shrink
from flwr_autoflip.graph.shrink import load_arrays_inplace
from flwr_autoflip.ledger.page.curves import WINDOW
from flwr_autoflip.methods.baselines.initial_pruning import (
    Schedule,
    prune_initially_inplace,
)
from flwr_autoflip.wire import from_arrayrecord

from .methods import EVERYTHING, Compared, Given
from .tasks import Federation, Scale, Task, find_task, load
from .training import evaluate, train
from .watch import Watched, WatchedM

HeldOut = Literal["test", "validation"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Setting:
    """What one run is; travels as Flower's run config.

    Parameters
    ----------
    task, scale, method : str
    seed : int
    threshold : str
        How much is kept, for methods that take AutoFLIP's size, such as ``"4x"``.
    data : str
        Folder of data sets; "" loads them from the Hugging Face hub.
    evaluate_on : {"test", "validation"}
        Whether the test set is looked at: not where methods are being chosen.
    """

    task: str
    scale: str
    method: str
    seed: int
    threshold: str = ""
    data: str = ""
    evaluate_on: HeldOut = "test"

    @classmethod
    def of(cls, context: Context) -> "Setting":
        """Read a run config."""
        config = context.run_config
        return cls(**{key: config[key] for key in cls.__dataclass_fields__})  # type: ignore[arg-type]

    @property
    def parts(self) -> tuple[Task, Scale, Compared]:
        """Look the names up."""
        task, method = find_task(self.task), EVERYTHING[self.method]
        scale = task.scale(self.scale)
        epochs = scale.local_epochs * method.epoch_factor
        return task, replace(scale, local_epochs=epochs), method

    @property
    def rounds(self) -> int:
        """How many rounds the run takes."""
        _, scale, method = self.parts
        return scale.rounds * method.round_factor

    def load(self) -> Federation:
        """Load everybody's data; cached in the process."""
        task, scale, _ = self.parts
        return load(task, scale, self.seed, Path(self.data) if self.data else None)

    def describe(self) -> dict[str, Any]:
        """Give everything that decides the result."""
        described = asdict(self) | {"rounds": self.rounds}
        del described["data"]
        if self.evaluate_on == "test":  # as in runs that were made without it
            del described["evaluate_on"]
        return described | {"settings": asdict(self.parts[1])}


# --- The node ---


@cache
def model_fn(task: str, scale: str) -> Callable[[], nn.Module]:
    """Give the function that builds a task's model, always the same object."""
    found = find_task(task)
    return partial(found.build, found.scale(scale))


class Client(AutoFlipClient):
    """Train on one node's part of the data."""

    def __init__(self, context: Context) -> None:
        self.setting = Setting.of(context)
        super().__init__(model_fn(self.setting.task, self.setting.scale), context)
        self.node = int(context.node_config["partition-id"])

    def train(
        self, model: nn.Module, config: dict[str, Any]
    ) -> tuple[int, dict[str, float]]:
        """Run this round's local epochs."""
        _, scale, method = self.setting.parts
        data = self.setting.load().train[self.node]
        server_round = int(config["server-round"])
        if method.name.startswith("prunefl") and server_round == 1:
            density = prune_at_one_client(model, data, self.setting)
            return len(data), {"train-loss": density}
        loss = train(
            model,
            data,
            int(config.get("local-epochs", scale.local_epochs)),
            scale.batch_size,
            scale.lr,
            scale.weight_decay,
            seed=node_seed(self.setting.seed, server_round, self.node),
            device=DEVICE,
        )
        return len(data), {"train-loss": loss}


def node_seed(seed: int, server_round: int, node: int) -> int:
    """Give every node in every round an order of examples of its own."""
    return (seed * 10_000 + server_round) * 10_000 + node


def prune_at_one_client(
    model: nn.Module, data: TensorDataset, setting: Setting
) -> float:
    """Run PruneFL's initial pruning on ten batches of 20, with the task's SGD.

    Its authors take up to 1,000 passes before 10,000 rounds; here up to 50, with an
    adjustment after every 5, stand before tens of rounds.
    """
    task, scale, _ = setting.parts
    torch.manual_seed(setting.seed)
    chosen = torch.randperm(len(data))[:200].split(20)
    batches = [tuple(t[i].to(DEVICE) for t in data.tensors) for i in chosen]
    optimizer = torch.optim.SGD(model.to(DEVICE).parameters(), lr=scale.lr)
    schedule = Schedule(max_passes=50, interval=5, min_accuracy=1.5 / task.classes)

    def loss_fn(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten())

    return prune_initially_inplace(model, optimizer, loss_fn, batches, schedule)


def make_client_app() -> ClientApp:
    """Build the ClientApp of every method."""
    return client_app(Client)


# --- The server ---


def make_strategy(setting: Setting, model: nn.Module, ledger_dir: Path) -> AutoFlip:
    """Build the strategy of a run."""
    task, scale, compared = setting.parts
    nodes = setting.load().num_nodes
    given = Given(
        setting.seed,
        nodes,
        max(1, scale.rounds // 4),
        scale.exploration_epochs,
        setting.threshold or None,
    )
    common = {
        "seed": setting.seed,
        "names": [name for name, _ in model.named_parameters()],
        "fraction_train": scale.nodes_per_round / nodes,
        "fraction_evaluate": 0.0,
        "min_train_nodes": scale.nodes_per_round,
        "min_available_nodes": nodes,
    }
    method, momentum = compared.make(given), scale.server_momentum
    return AutoFlip(
        WatchedM(**common, server_momentum=momentum) if momentum else Watched(**common),
        model,
        task.example_input,
        method=method,
        value_dtype=compared.value_dtype,
        ledger_dir=ledger_dir,
    )


def run_server(grid: Grid, setting: Setting, folder: Path) -> None:
    """Train once; write ``ledger.jsonl`` and ``watched.json`` into a folder.

    Parameters
    ----------
    grid : Grid
        Its nodes come in the order of their partitions, so that the seed decides who
        takes part.
    setting : Setting
    folder : Path
        Exists.
    """
    torch.set_num_threads(1)
    torch.manual_seed(setting.seed)
    task, scale, _ = setting.parts
    model = task.build(scale)
    strategy = make_strategy(setting, model, folder)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=setting.rounds,
        evaluate_fn=Evaluation(strategy, setting),
    )
    watched = {"variances": strategy.strategy.variances}
    (folder / "watched.json").write_text(json.dumps(watched))


class Evaluation:
    """Evaluate the model that would be deployed, small as it is.

    Figures of the dense model and of nodes' own tests are only wanted at the end, so
    only the last rounds pay for them.

    Parameters
    ----------
    strategy : AutoFlip
    setting : Setting
    """

    def __init__(self, strategy: AutoFlip, setting: Setting) -> None:
        self.strategy, self.setting = strategy, setting
        _, scale, _ = setting.parts
        ends = (scale.rounds, setting.rounds)
        self.late = {n for end in ends for n in range(end - WINDOW + 1, end + 1)}

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Give ``loss`` and ``top1``, in the last rounds ``dense-`` and ``local-``."""
        data, dense = self.setting.load(), self._model(arrays)
        held_out = getattr(data, self.setting.evaluate_on)
        small = shrink(dense, self.strategy.deployable_plan)
        loss, top1 = evaluate(small, held_out, DEVICE)
        metrics = {"loss": loss, "top1": top1}
        if server_round in self.late:
            dense = self._model(self.strategy.run.state.arrays)
            metrics["dense-top1"] = evaluate(dense, held_out, DEVICE)[1]
            locally = [evaluate(small, own, DEVICE)[1] for own in data.local_test]
            metrics["local-top1"] = sum(locally) / len(locally)
        return MetricRecord(metrics)

    def _model(self, arrays: ArrayRecord) -> nn.Module:
        model = model_fn(self.setting.task, self.setting.scale)()
        load_arrays_inplace(model, from_arrayrecord(arrays))
        return model
