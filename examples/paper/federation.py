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
from flwr_autoflip.methods.policy import parse_units
from torch import nn
from torch.utils.data import TensorDataset

from flwr_autoflip import AutoFlip, AutoFlipClient, client_app, shrink
from flwr_autoflip.graph.shrink import load_arrays_inplace
from flwr_autoflip.ledger.page.curves import WINDOW
from flwr_autoflip.methods import EflPrune, Policy, PruneFl, RandomUnits, Structured
from flwr_autoflip.methods.baselines.initial_pruning import (
    Schedule,
    prune_initially_inplace,
)
from flwr_autoflip.methods.guidance import normalize
from flwr_autoflip.wire import from_arrayrecord

from .methods import EVERYTHING, Method
from .tasks import Federation, Scale, Task, find_task, load
from .training import evaluate, train
from .watch import Watched, WatchedM, guidance_histogram

HeldOut = Literal["test", "validation"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXPLORING = 0
"""The round in which nodes explore."""


@dataclass(frozen=True)
class Setting:
    """What one run is; travels as Flower's run config.

    Parameters
    ----------
    task, scale, method : str
    seed : int
    threshold : str
        How much stays, for methods that take AutoFLIP's size; "" is the method's own.
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
    def parts(self) -> tuple[Task, Scale, Method]:
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
        _, scale, method = self.parts
        described = asdict(self) | {"rounds": self.rounds}
        del described["data"]
        if self.evaluate_on == "test":  # as in runs that were made without it
            del described["evaluate_on"]
        return described | {
            "settings": asdict(scale),
            "options": dict(method.options),
            "exploration_epochs": scale.exploration_epochs if method.literal else None,
        }


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
        if method.options.get("policy") == "prunefl" and server_round == EXPLORING:
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


def make_policy(setting: Setting, threshold: str) -> Policy | str:
    """Build the policy of a method; a quarter of the rounds is its time unit.

    PruneFL adjusts every 50 of the paper's 200 rounds; structured pruning may prune in
    as many.
    """
    _, scale, method = setting.parts
    name = str(method.options["policy"])
    kind, _, detail = name.partition("-")
    size = parse_units(threshold) if threshold else None
    quarter = max(1, scale.rounds // 4)
    match kind:
        case "random":
            return RandomUnits(size, setting.seed)
        case "eflprune":
            return EflPrune(detail, size, setting.seed)  # type: ignore[arg-type]
        case "prunefl":
            return PruneFl(size, interval=quarter)  # type: ignore[arg-type]
        case "structured":
            return Structured(
                threshold=size, last_round=1 + quarter, restart=detail == "restart"
            )
    return name


def make_strategy(setting: Setting, model: nn.Module, ledger_dir: Path) -> AutoFlip:
    """Build the strategy of a run."""
    task, scale, method = setting.parts
    options = dict(method.options)
    threshold = setting.threshold or options.pop("threshold", "")
    if "policy" in options:
        options["policy"] = make_policy(setting, threshold)
    if threshold and not isinstance(options.get("policy"), Policy):
        options["threshold"] = threshold
    if method.literal:
        options["exploration_epochs"] = scale.exploration_epochs
    common = {
        "seed": setting.seed,
        "names": [name for name, _ in model.named_parameters()],
        "fraction_train": scale.nodes_per_round / setting.load().num_nodes,
        "fraction_evaluate": 0.0,
        "min_train_nodes": scale.nodes_per_round,
        "min_available_nodes": setting.load().num_nodes,
    }
    momentum = scale.server_momentum
    inner = (
        WatchedM(**common, server_momentum=momentum) if momentum else Watched(**common)
    )
    return AutoFlip(
        inner,
        model,
        task.example_input,
        ledger_dir=ledger_dir,
        evaluate_dense=True,
        **options,
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
    watched: dict[str, Any] = {"variances": strategy.strategy.variances}
    if reports := list(strategy.reports.values()):
        options = strategy.options
        guidance = normalize(reports, options["normalization"], options["client_scale"])
        watched["guidance"] = guidance_histogram(guidance)
    (folder / "watched.json").write_text(json.dumps(watched))


class Evaluation:
    """Evaluate the model that would be deployed, small as it is.

    The strategy calls once with the deployable model's arrays and, where that is not
    the whole model, once more with the dense ones. Dense and local figures are only
    wanted at the end, so only the last rounds pay for them.

    Parameters
    ----------
    strategy : AutoFlip
    setting : Setting
    """

    def __init__(self, strategy: AutoFlip, setting: Setting) -> None:
        self.strategy, self.setting = strategy, setting
        self.evaluated = -1

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Give ``loss`` and ``top1``, and ``local-top1`` in the last rounds."""
        scale, data = self.setting.parts[1], self.setting.load()
        ends = (scale.rounds, self.setting.rounds)
        late = any(end - WINDOW < server_round <= end for end in ends)
        deployable, self.evaluated = self.evaluated != server_round, server_round
        if not (deployable or late):
            return None
        model = model_fn(self.setting.task, self.setting.scale)()
        load_arrays_inplace(model, from_arrayrecord(arrays))
        if deployable:
            model = shrink(model, self.strategy.deployable_plan())
        loss, top1 = evaluate(model, getattr(data, self.setting.evaluate_on), DEVICE)
        metrics = {"loss": loss, "top1": top1}
        if late:
            locally = [evaluate(model, own, DEVICE)[1] for own in data.local_test]
            metrics["local-top1"] = sum(locally) / len(locally)
        return MetricRecord(metrics)
