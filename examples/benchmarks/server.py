"""What a round costs the server, as a ratio to Flower's FedAvg on the dense arrays.

``python -m examples.benchmarks.server`` times ``start()`` of one round, less what its
nodes take: plan, requests, checks, average. Seconds are of the processor, in turns,
medians. ``--memory`` (Linux) instead measures by how much a round's memory peaks, each
in a process of its own, its K replies included, in dense models. "Averages" is an
inner strategy that only averages, "more" any other, which gets dense models.
"""

import argparse
import ctypes
import gc
import logging
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import nn

from flwr_autoflip import AutoFlip, wire
from flwr_autoflip.client.answer import metadata_of
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.methods import L1

from ..inprocess import InProcessGrid
from ..paper.models import FemnistCNN, ResNet50

MODELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "femnist-cnn": (lambda: FemnistCNN(62), torch.zeros(1, 1, 28, 28)),
    "resnet50": (lambda: ResNet50(100), torch.zeros(1, 3, 32, 32)),
}
ROUNDS: dict[str, tuple[bool, str]] = {  # does it only average, what is kept
    "averages, 1/2 kept": (True, "2x"),
    "averages, 1/4 kept": (True, "4x"),
    "more, 1/2 kept": (False, "2x"),
    "more, all kept": (False, "1x"),
}
METRICS = {"num-examples": 10, "loss": 1.0}
STATUS = Path("/proc/self/status")


class DoesMore(FedAvg):
    """Stands for strategies that do more than average: these get dense models."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Average."""
        return super().aggregate_train(server_round, replies)


class Nodes(InProcessGrid):
    """Nodes that send as many values as they got, all 1.

    Attributes
    ----------
    seconds : float
        Processor time that they took so far.
    """

    seconds = 0.0

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Answer all."""
        start, replies = time.process_time(), []
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = str(self._sent)
            replies.append(Message(_answer(message.content), reply_to=message))
        self.seconds += time.process_time() - start
        return replies


def _answer(content: RecordDict) -> RecordDict:
    """Answer AutoFlip's request, or plain FedAvg's."""
    if not wire.is_ours(content):
        (arrays,) = content.array_records.values()
        own = ArrayRecord(arrays.to_torch_state_dict())
        return RecordDict({"arrays": own, "metrics": MetricRecord(METRICS)})
    request = wire.read_request(content)
    plan = request.instructions.plan
    values = np.ones(plan.num_values, np.float32)
    metadata = metadata_of(request, plan.num_parameters, 1.0)
    return wire.reply_content(METRICS, metadata, values)


def prepare(name: str, kind: str, nodes: int) -> Callable[[], float]:
    """Prepare FedAvg's round, or AutoFLIP's; what comes back runs it.

    Parameters
    ----------
    name : str
        One of :data:`MODELS`.
    kind : str
        ``"FedAvg"`` or one of :data:`ROUNDS`.
    nodes : int

    Returns
    -------
    callable
        Gives the server's seconds.
    """
    build, example = MODELS[name]
    model, grid = build(), Nodes(ClientApp(), nodes)
    averages, kept = ROUNDS.get(kind, (True, ""))
    strategy: Strategy = (FedAvg if averages else DoesMore)(fraction_evaluate=0.0)
    if kept:
        method = L1(threshold=kept, rescale=False)
        strategy = AutoFlip(
            strategy, model, example, method=method, value_dtype="float32"
        )
    arrays = ArrayRecord(model.state_dict())

    def run() -> float:
        before, start = grid.seconds, time.process_time()
        strategy.start(grid, arrays, num_rounds=1)
        spent = time.process_time() - start - (grid.seconds - before)
        if isinstance(strategy, AutoFlip):
            statuses = [row["status"] for row in node_rows(strategy.ledger.rows)]
            assert statuses == ["ok"] * nodes, statuses
        return spent

    return run


def measure(rounds: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Run rounds in turns; give each one's median over the first one's."""
    times: dict[str, list[float]] = {key: [] for key in rounds}
    for turn in range(repeats + 1):
        for key, run in rounds.items():
            seconds = run()
            if turn:  # the first fills caches
                times[key].append(seconds)
    medians = [statistics.median(values) for values in times.values()]
    return {key: m / medians[0] for key, m in zip(rounds, medians, strict=True)}


# --- Memory ---


def peak(name: str, kind: str, nodes: int) -> int:
    """Run a round in this process; give by how much its memory peaked, in bytes."""
    run = prepare(name, kind, nodes)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what tracing left would hide what a round takes
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    run()
    return _resident("VmHWM") - before


def _resident(which: str) -> int:
    found = re.search(rf"{which}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None, f"{STATUS} has no {which}"
    return int(found[1]) * 1024


def main() -> None:
    """Measure all models; print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel("ERROR")
    torch.set_num_threads(1)
    if options.one:
        print(peak(*options.one, options.nodes))
        return
    for name in options.models:
        dense = 4 * sum(p.numel() for p in MODELS[name][0]().parameters())
        kinds = ("FedAvg", *ROUNDS)
        if not options.memory:
            rounds = {kind: prepare(name, kind, options.nodes) for kind in kinds}
            for kind, ratio in measure(rounds, options.repeats).items():
                print(f"{name}, {kind}: {ratio:.2f} of FedAvg's time")
            continue
        for kind in kinds:
            command = [sys.executable, "-m", __spec__.name, "--one", name, kind]
            command += ["--nodes", str(options.nodes)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"{name}, {kind}: {int(done.stdout) / dense:.1f} dense models")


if __name__ == "__main__":
    main()
