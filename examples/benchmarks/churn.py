"""A hundred nodes, a tenth of them lost in every round: nothing else may get lost.

``python -m examples.benchmarks.churn`` runs it in one process, ``--backend flwr``
through ``flwr run``. A witness between strategy and nodes adds up what nodes send, by
itself, and compares the mean with what the server sends out next. The resident memory
of the server's process is read after every round.
"""

import argparse
import json
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from torch import nn

from examples.inprocess import InProcessGrid
from flwr_autoflip import AutoFlip, AutoFlipClient, client_app, wire
from flwr_autoflip.graph.pack import pack

from ..simulation import flwr_run, superlink

HERE = Path(__file__).parent
EXAMPLE = torch.zeros(1, 1, 8, 8)


class Net(nn.Module):
    """As small as a network with filters and neurons can be."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.fc1 = nn.Linear(8 * 9, 16)
        self.fc2 = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, 1, 8, 8)`` to logits ``(batch, 3)``."""
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


# --- Nodes ---


def drops_out(partition: int, num_partitions: int, server_round: int) -> bool:
    """Tell whether a node is one of the tenth that fails in this round."""
    draw = random.Random(server_round)
    return partition in draw.sample(range(num_partitions), num_partitions // 10)


class Client(AutoFlipClient):
    """One step on a node's own random images, unless it drops out."""

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        """Train in place."""
        partition = int(self.context.node_config["partition-id"])
        nodes = int(self.context.node_config["num-partitions"])
        if drops_out(partition, nodes, int(config["server-round"])):
            raise ConnectionError("dropped out")
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(partition)
        count = 4 + partition % 5
        images = torch.randn(count, 1, 8, 8, generator=generator)
        labels = torch.randint(0, 3, (count,), generator=generator)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        return count, {}


app = client_app(lambda context: Client(Net, context))


# --- Server ---


class Witness:
    """A grid that adds up, on its own account, what nodes send to be averaged.

    Parameters
    ----------
    grid : Grid
        The real one.

    Attributes
    ----------
    summed : int
        Replies in a sum.
    largest_difference : float
        Between the mean of a round's replies and what the server made of them.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.summed = 0
        self.largest_difference = 0.0
        self._mean: NDArray[np.float64] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send; compare what goes out with the last mean, and make the next one."""
        messages = list(messages)
        training = bool(messages) and _is_training(messages[0])
        if training:
            self.compare(_values(messages[0]))
        replies = list(self.grid.send_and_receive(messages, timeout=timeout))
        valid = [reply for reply in replies if not reply.has_error()]
        if training and valid:
            counts = [_num_examples(reply) for reply in valid]
            self._mean = np.average(
                [_values(reply) for reply in valid], axis=0, weights=counts
            )
            self.summed += len(valid)
        return replies

    def compare(self, values: NDArray[Any]) -> None:
        """Compare the global values with the mean of what nodes sent last."""
        if self._mean is not None:
            difference = float(np.abs(values - self._mean).max())
            self.largest_difference = max(self.largest_difference, difference)


def _is_training(message: Message) -> bool:
    (config,) = message.content.config_records.values()
    return config["autoflip-phase"] == "train"


def _values(message: Message) -> NDArray[np.float64]:
    (record,) = message.content.array_records.values()
    return wire.single_array(record).astype(np.float64)


def _num_examples(reply: Message) -> float:
    (metrics,) = reply.content.metric_records.values()
    return float(metrics["num-examples"])  # type: ignore[arg-type]


def resident_mb() -> float:
    """Read this process' resident memory (Linux), MB of 10^6 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/status has no VmRSS.")


def serve(grid: Grid, nodes: int, rounds: int) -> dict[str, Any]:
    """Run the federation; say what became of every reply, and of memory."""
    torch.manual_seed(0)
    witness = Witness(grid)
    memory: dict[int, float] = {}

    def note_memory(server_round: int, arrays: ArrayRecord) -> None:
        memory[server_round] = resident_mb()

    strategy = AutoFlip(
        FedAvg(fraction_evaluate=0.0, min_available_nodes=nodes),
        Net(),
        EXAMPLE,
        preset="guided",
        threshold="mass:0.7",
        value_dtype="float32",
    )
    start = time.monotonic()
    result = strategy.start(
        witness,  # type: ignore[arg-type]
        ArrayRecord(Net().state_dict()),
        num_rounds=rounds,
        evaluate_fn=note_memory,
    )
    final = {name: array.numpy() for name, array in result.arrays.items()}
    witness.compare(pack(final, strategy.deployable_plan()).astype(np.float64))
    rows = [row for row in strategy.ledger.rows if row["phase"] == "train"]
    return {
        "nodes": nodes,
        "rounds": len({row["round"] for row in rows}),
        "requests": len(rows),
        "failed": sum(row["status"] == "failed" for row in rows),
        "accepted": sum(row["status"] == "ok" for row in rows),
        "summed_by_the_witness": witness.summed,
        "largest_difference": witness.largest_difference,
        "resident_mb": list(memory.values()),  # after exploring, then every round
        "seconds": time.monotonic() - start,
    }


# --- Running ---


def in_process(nodes: int, rounds: int) -> dict[str, Any]:
    """Run everything in this process."""
    return serve(InProcessGrid(app, nodes), nodes, rounds)


def through_flower(nodes: int, rounds: int, out: Path) -> dict[str, Any]:
    """Run the same through ``flwr run``."""
    report = out / "churn-flwr.json"
    report.unlink(missing_ok=True)
    config = {"nodes": nodes, "num-server-rounds": rounds, "report": str(report)}
    with superlink(out, HERE.parents[1]) as environment:
        log = out / "churn-flwr.log"
        for _ in flwr_run(HERE / "churn_app", config, nodes, environment, log):
            pass
    if not report.exists():
        raise SystemExit(f"the run did not finish; see {log}")
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("inprocess", "flwr"), default="inprocess")
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.backend == "flwr":
        found = through_flower(options.nodes, options.rounds, out)
    else:
        found = in_process(options.nodes, options.rounds)
        (out / "churn-inprocess.json").write_text(json.dumps(found, indent=1) + "\n")
    memory = found.pop("resident_mb")
    print(json.dumps(found, indent=1))
    early = min(5, len(memory) - 1)
    print(f"resident memory: {memory[early]:.1f} MB after round {early}, ", end="")
    print(f"{memory[-1]:.1f} MB after round {len(memory) - 1}")


if __name__ == "__main__":
    main()
