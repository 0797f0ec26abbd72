"""A thousand nodes, half of them failing in every round, and a wire full of rubbish.

``python -m examples.benchmarks.churn`` runs 500 rounds. Of the nodes that fail a third
answers with an error, a third never, and a third with something that has to be
refused. Besides, replies come twice, replies of earlier rounds come again, and nodes
that were never asked answer, some of them to requests of others. The server's clock
jumps by up to a day between rounds. What honest nodes send is added up by the grid
itself, and compared with what the server sends next.

Nodes train nothing, they move every value a little: this is about the server.
"""

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from torch import nn

from flwr_autoflip import AutoFlip, wire
from flwr_autoflip.client.answer import metadata_of
from flwr_autoflip.graph.pack import pack

from ..inprocess import InProcessGrid

DAY = 86_400.0
OLD = 40
"""Replies of earlier rounds that are kept, to come again."""


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


class HostileGrid(InProcessGrid):
    """Nodes and strangers as the module says.

    Parameters
    ----------
    nodes : int
    seed : int (default: 0)

    Attributes
    ----------
    honest : int
        Replies that have to be in an average.
    largest_difference : float
        Between the mean of a round's honest replies and what the server made of them.
    sent : Counter
        What was sent beside honest replies, by kind.
    """

    def __init__(self, nodes: int, seed: int = 0) -> None:
        super().__init__(ClientApp(), nodes)
        self.chance = random.Random(seed)
        self.honest, self.largest_difference = 0, 0.0
        self.sent: Counter[str] = Counter()
        self.old: list[Message] = []
        self._mean: NDArray[np.float64] | None = None

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Answer, or not, in any order and with rubbish between."""
        messages = list(messages)
        if not messages:  # nobody evaluates
            return []
        self.compare(_values(messages[0].content))
        replies, good = [], []
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = f"{self._sent}"
            kinds = ("honest",) * 3 + ("error", "missing", "refused")
            kind = self.chance.choice(kinds)
            if kind == "honest":
                good.append(self._answer(message))
            else:
                self.sent[kind] += 1
                replies += self._bad(message, kind)
        self._add_up(good)
        replies += good + list(self._rubbish(messages, good))
        self.chance.shuffle(replies)
        self.old = self.chance.sample(replies, min(OLD, len(replies)))
        return replies

    def _answer(self, message: Message) -> Message:
        """Answer as a node does whose training moved every value by a little."""
        node = message.metadata.dst_node_id
        request = wire.read_request(message.content)
        instructions = request.instructions
        noise = np.random.default_rng((node, self._sent))
        values = instructions.values + noise.normal(0, 0.01, len(instructions.values))
        metadata = metadata_of(request, instructions.plan.num_parameters, 0.1)
        metrics = {"num-examples": 1 + node % 9}
        content = wire.reply_content(metrics, metadata, values.astype(np.float32))
        return _reply(node, message, content)

    def _bad(self, message: Message, kind: str) -> list[Message]:
        """Fail, in one of the ways that the module names."""
        if kind == "missing":
            return []
        if kind == "error":
            return [Message(Error(0, "dropped out"), reply_to=message)]
        reply = self._answer(message)
        _spoil(reply.content, self.chance)
        return [reply]

    def _rubbish(
        self, messages: list[Message], good: list[Message]
    ) -> Iterator[Message]:
        """Give replies that count nowhere: again, of old rounds, of strangers."""
        again = self.chance.sample(good, len(good) // 10)
        self.sent["again"] += len(again)
        self.sent["old"] += len(self.old)
        yield from again
        yield from self.old
        for message in self.chance.sample(messages, min(20, len(messages))):
            self.sent["stranger"] += 1
            content = good[0].content if good else RecordDict()
            yield _reply(7, message, content)  # to another's open request

    def _add_up(self, good: list[Message]) -> None:
        self.honest += len(good)
        if good:
            counts = [r.content["metrics"]["num-examples"] for r in good]
            values = [_values(reply.content).astype(np.float64) for reply in good]
            self._mean = np.average(values, axis=0, weights=counts)

    def compare(self, values: NDArray[Any]) -> None:
        """Compare global values with the mean of what honest nodes sent last."""
        if self._mean is not None:
            difference = float(np.abs(values - self._mean).max())
            self.largest_difference = max(self.largest_difference, difference)


def _reply(node: int, message: Message, content: RecordDict) -> Message:
    reply = Message(content, reply_to=message)
    # As Flower stamps who really sent it.
    reply.metadata.__dict__["_src_node_id"] = node
    return reply


def _spoil(content: RecordDict, chance: random.Random) -> None:
    """Make a reply one that has to be refused."""
    values, metadata = _values(content).copy(), content[wire.keys.METADATA]
    match chance.randrange(6):
        case 0:
            wrong = (np.nan, np.inf, 3e38)
            values[chance.randrange(len(values))] = chance.choice(wrong)
        case 1:
            values = values[: chance.randrange(len(values))]
        case 2:
            metadata[wire.keys.DIGEST] = b"another plan's"
        case 3:
            metadata[wire.keys.PARAMETERS] = chance.choice((-1, 1, 2**62, "many"))
        case 4:
            count = chance.choice((0, -1, 1e300, [1, 2]))
            content["metrics"]["num-examples"] = count
        case _:
            values = values.astype(np.float64)
    (key,) = content.array_records
    content[key] = wire.to_arrayrecord({chance.choice((wire.keys.ARRAY, "x")): values})


def _values(content: RecordDict) -> NDArray[Any]:
    (record,) = content.array_records.values()
    return wire.single_array(record)


@contextmanager
def jumping_clock(chance: random.Random) -> Iterator[None]:
    """Let the wall clock jump by up to a day, either way, whenever it is read."""
    real = time.time

    def jumping() -> float:
        return real() + chance.uniform(-DAY, DAY)

    with mock.patch("time.time", jumping):
        yield


def resident_mb() -> float:
    """Read this process' resident memory (Linux), MB of 10^6 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/status has no VmRSS.")


def run(nodes: int, rounds: int) -> dict[str, Any]:
    """Run the federation; say what became of every reply, and of memory."""
    torch.manual_seed(0)
    grid, memory = HostileGrid(nodes), {}

    def note_memory(server_round: int, arrays: ArrayRecord) -> None:
        memory[server_round] = resident_mb()

    inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=nodes)
    example = torch.zeros(1, 1, 8, 8)
    strategy = AutoFlip(inner, Net(), example, value_dtype="float32")
    start = time.monotonic()
    with jumping_clock(random.Random(1)):
        arrays = ArrayRecord(Net().state_dict())
        result = strategy.start(
            grid, arrays, num_rounds=rounds, evaluate_fn=note_memory
        )
    final = {name: array.numpy() for name, array in result.arrays.items()}
    grid.compare(pack(final, strategy.deployable_plan))
    statuses = Counter(
        row["status"] for row in strategy.ledger.rows if row["phase"] == "train"
    )
    return {
        "nodes": nodes,
        "rounds": rounds,
        "statuses": dict(statuses),
        "honest": grid.honest,
        "beside": dict(grid.sent),
        "largest_difference": grid.largest_difference,
        "resident_mb": memory,
        "seconds": time.monotonic() - start,
    }


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=500)
    options = parser.parse_args()
    found = run(options.nodes, options.rounds)
    memory = found.pop("resident_mb")
    print(json.dumps(found, indent=1))
    early = min(50, options.rounds)
    ratio = memory[options.rounds] / memory[early]
    print(f"resident memory: {memory[early]:.1f} MB after round {early}, ", end="")
    print(f"{ratio:.3f} of that after round {options.rounds}")


if __name__ == "__main__":
    main()
