"""What a round costs the server, as a ratio to Flower's FedAvg on the dense arrays.

FedAvg: ``configure_train`` and ``aggregate_train`` over K dense replies. AutoFLIP: a
new plan, ``configure_train`` (pack, encode, count) and ``aggregate_train`` (check,
average, expand) over K replies of kept values. Making replies is not timed; nodes do
nothing. Seconds are of the processor, in turns, medians.
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from examples.inprocess import InProcessGrid
from flwr_autoflip import AutoFlip, wire
from flwr_autoflip.graph.codec import VERSION, encode_plan, plan_digest
from flwr_autoflip.ledger.ledger import node_rows

from ..paper.models import FemnistCNN, ResNet50

MODELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "femnist-cnn": (lambda: FemnistCNN(62), torch.zeros(1, 1, 28, 28)),
    "resnet50": (lambda: ResNet50(100), torch.zeros(1, 3, 32, 32)),
}
Round = Callable[[], float]
METRICS = MetricRecord({"num-examples": 10, "loss": 1.0})


def fedavg_round(model: nn.Module, grid: InProcessGrid) -> Round:
    """Prepare FedAvg's round; what comes back runs it and gives its seconds."""
    inner, arrays = FedAvg(fraction_evaluate=0.0), ArrayRecord(model.state_dict())

    def content() -> RecordDict:
        record = ArrayRecord(model.state_dict())
        return RecordDict({"arrays": record, "metrics": METRICS})

    def run() -> float:
        start = time.process_time()
        messages = list(inner.configure_train(1, arrays, ConfigRecord(), grid))
        spent = time.process_time() - start
        answers = answered(messages, content)
        start = time.process_time()
        inner.aggregate_train(1, answers)
        return spent + time.process_time() - start

    return run


def answered(
    messages: Sequence[Message], content: Callable[[], RecordDict]
) -> list[Message]:
    """Give every request an id, as Flower's grids do, and a reply."""
    for number, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = str(number)
    return [Message(content(), reply_to=message) for message in messages]


class DoesMore(FedAvg):
    """Stands for strategies that do more than average: these get dense models."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Average."""
        return super().aggregate_train(server_round, replies)


def autoflip_round(
    model: nn.Module,
    example: torch.Tensor,
    grid: InProcessGrid,
    averages: bool = True,
    **options: Any,
) -> Round:
    """Prepare AutoFLIP's round around a strategy that only averages, or not."""
    inner = (FedAvg if averages else DoesMore)(fraction_evaluate=0.0)
    options = {"rescale": False, "value_dtype": "float32", **options}
    strategy = AutoFlip(inner, model, example, **options)
    arrays = ArrayRecord(model.state_dict())
    strategy.start(grid, arrays, num_rounds=0)
    weights = wire.from_arrayrecord(arrays)
    plan = strategy.policy(0, strategy.layout, weights, [])
    digest = plan_digest(encode_plan(plan), plan.layout)
    receipt = {wire.keys.VERSION: VERSION, wire.keys.DIGEST: digest}
    receipt |= {wire.keys.PARAMETERS: plan.num_parameters}
    receipt |= {wire.keys.EXAMPLES: 10, wire.keys.SECONDS: 1.0}
    values = np.ones(plan.num_values, np.float32)

    def content() -> RecordDict:
        record = ArrayRecord({"values": Array(values)})
        records = {"arrays": record, "metrics": METRICS}
        return RecordDict(records | {wire.RECEIPT: ConfigRecord(receipt)})

    def run() -> float:
        encode_plan.cache_clear()
        start = time.process_time()
        strategy._planner.start(weights)  # otherwise once a run
        messages = strategy.configure_train(1, arrays, ConfigRecord(), grid)
        spent = time.process_time() - start
        answers = answered(messages, content)
        start = time.process_time()
        strategy.aggregate_train(1, answers)
        spent += time.process_time() - start
        rows = node_rows(strategy.ledger.rows)[-len(answers) :]
        statuses = [row["status"] for row in rows]
        assert statuses == ["ok"] * len(answers), statuses
        return spent

    return run


def measure(rounds: dict[str, Round], repeats: int) -> dict[str, float]:
    """Run rounds in turns; give each one's median over the first one's."""
    times: dict[str, list[float]] = {key: [] for key in rounds}
    for turn in range(repeats + 1):
        for key, run in rounds.items():
            seconds = run()
            if turn:  # the first fills caches
                times[key].append(seconds)
    medians = [statistics.median(values) for values in times.values()]
    return {key: m / medians[0] for key, m in zip(rounds, medians, strict=True)}


def main() -> None:
    """Measure all models and sizes; print ratios and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel("ERROR")
    torch.set_num_threads(1)
    rows = []
    for name in options.models:
        build, example = MODELS[name]
        model, grid = build(), InProcessGrid(ClientApp(), options.nodes)
        parameters = sum(p.numel() for p in model.parameters())
        rounds = {"FedAvg": fedavg_round(model, grid)}
        for kept, threshold in (("1/2 kept", "2x"), ("1/4 kept", "4x")):
            rounds[kept] = autoflip_round(model, example, grid, threshold=threshold)
        for key, ratio in measure(rounds, options.repeats).items():
            print(f"{name}, {parameters:,} parameters, {key}: {ratio:.2f} of FedAvg")
            row = {"model": name, "parameters": parameters, "nodes": options.nodes}
            rows.append(row | {"round": key, "ratio": round(ratio, 3)})
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "server.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
