"""A thousand nodes, half of them failing in every round, and a wire full of rubbish.

``python -m examples.benchmarks.hostile`` runs 500 rounds. Of the nodes that fail a
third answers with an error, a third never, and a third with something that has to be
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
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr_autoflip.wire.exploration import encode_report
from numpy.typing import NDArray

from examples.inprocess import InProcessGrid
from flwr_autoflip import AutoFlip, wire
from flwr_autoflip.client.client import receipt_of
from flwr_autoflip.graph.pack import pack
from flwr_autoflip.ledger.cost import CostOf

from .churn import EXAMPLE, Net, resident_mb

DAY = 86_400.0
OLD = 40
"""Replies of earlier rounds that are kept, to come again."""


class HostileGrid(InProcessGrid):
    """Nodes and strangers as the module says.

    Parameters
    ----------
    nodes : int
    seed : int (default: 0)

    Attributes
    ----------
    honest : int
        Replies to training that have to be in an average.
    largest_difference : float
        Between the mean of a round's honest replies and what the server made of them.
    sent : Counter
        What was sent beside honest replies, by kind.
    """

    def __init__(self, nodes: int, seed: int = 0) -> None:
        super().__init__(ClientApp(), nodes)
        self.cost_of = CostOf(Net(), EXAMPLE)
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
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = f"{self._sent}"
        training = bool(messages) and _phase(messages[0]) == "train"
        if training:
            self.compare(_values(messages[0].content))
        replies, good = [], []
        for message in messages:
            kind = self._kind() if training else "honest"
            if kind == "honest":
                good.append(self._answer(message))
            else:
                self.sent[kind] += 1
                replies += self._bad(message, kind)
        if training:
            self._add_up(good)
        replies += good + list(self._rubbish(messages, good))
        self.chance.shuffle(replies)
        self.old = self.chance.sample(replies, min(OLD, len(replies)))
        return replies

    def _kind(self) -> str:
        return self.chance.choice(("honest",) * 3 + ("error", "missing", "refused"))

    def _answer(self, message: Message) -> Message:
        """Answer as a node does whose training moved every value by a little."""
        node, content = message.metadata.dst_node_id, message.content
        array, config = _values(content), dict(content["config"])
        request = wire.read_request(array, config, self.contexts[node].state)
        request.remember(self.contexts[node].state)
        generator = np.random.default_rng((node, self._sent))
        receipt = receipt_of(
            request, self.cost_of.plan(request.orders.plan).parameters, 0.1
        )
        values = array + generator.normal(0, 0.01, array.shape).astype(np.float32)
        if request.orders.phase == "explore":
            start = request.arrays()
            moved = {
                n: a + np.float32(0.01) * generator.random(a.shape, np.float32)
                for n, a in start.items()
            }
            layout, payload = request.orders.plan.layout, request.orders.payload
            values, scale = encode_report(start, moved, layout, payload)
            receipt |= wire.seal_report(values, scale)
        return _reply(
            node, message, wire.train_reply(values, 1 + node % 9, receipt, content)
        )

    def _bad(self, message: Message, kind: str) -> list[Message]:
        """Fail, in one of the ways that the module names."""
        node = message.metadata.dst_node_id
        if kind == "missing":
            return []
        if kind == "error":
            return [Message(Error(0, "dropped out"), reply_to=message)]
        reply = self._answer(message)
        _spoil(reply.content, self.chance)
        return [_reply(node, message, reply.content)]

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
            counts = [_num_examples(reply.content) for reply in good]
            values = [_values(reply.content).astype(np.float64) for reply in good]
            self._mean = np.average(values, axis=0, weights=counts)

    def compare(self, values: NDArray[Any]) -> None:
        """Compare global values with the mean of what honest nodes sent last."""
        if self._mean is not None:
            difference = float(np.abs(values - self._mean).max())
            self.largest_difference = max(self.largest_difference, difference)


def _reply(node: int, message: Message, content: RecordDict) -> Message:
    reply = Message(content, reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = (
        node  # as Flower stamps who really sent it
    )
    return reply


def _spoil(content: RecordDict, chance: random.Random) -> None:
    """Make a reply one that has to be refused."""
    values, receipt = _values(content).copy(), content["autoflip"]
    match chance.randrange(6):
        case 0:
            values[chance.randrange(len(values))] = chance.choice(
                (np.nan, np.inf, 3e38)
            )
        case 1:
            values = values[: chance.randrange(len(values))]
        case 2:
            receipt["autoflip-plan-digest"] = b"another plan's"
        case 3:
            receipt["autoflip-parameters"] = chance.choice((-1, 1, 2**62, "many"))
        case 4:
            (metrics,) = content.metric_records.values()
            metrics["num-examples"] = chance.choice((0, -1, 1e300, [1, 2]))
        case _:
            values = values.astype(np.float64)
    (key,) = content.array_records
    content[key] = ArrayRecord({chance.choice(("values", "x")): Array(values)})


def _phase(message: Message) -> str:
    config: ConfigRecord = message.content["config"]
    return str(config["autoflip-phase"])


def _values(content: RecordDict) -> NDArray[Any]:
    (record,) = content.array_records.values()
    return wire.single_array(record)


def _num_examples(content: RecordDict) -> float:
    (metrics,) = content.metric_records.values()
    return float(metrics["num-examples"])  # type: ignore[arg-type]


@contextmanager
def jumping_clock(chance: random.Random) -> Iterator[None]:
    """Let the wall clock jump by up to a day, either way, whenever it is read."""
    real = time.time

    def jumping() -> float:
        return real() + chance.uniform(-DAY, DAY)

    with mock.patch("time.time", jumping):
        yield


def run(nodes: int, rounds: int) -> dict[str, Any]:
    """Run the federation; say what became of every reply, and of memory."""
    torch.manual_seed(0)
    grid, memory = HostileGrid(nodes), {}

    def note_memory(server_round: int, arrays: ArrayRecord) -> None:
        memory[server_round] = resident_mb()

    inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=nodes)
    strategy = AutoFlip(
        inner,
        Net(),
        EXAMPLE,
        preset="guided",
        threshold="mass:0.7",
        value_dtype="float32",
    )
    start = time.monotonic()
    with jumping_clock(random.Random(1)):
        arrays = ArrayRecord(Net().state_dict())
        result = strategy.start(
            grid, arrays, num_rounds=rounds, evaluate_fn=note_memory
        )
    final = {name: array.numpy() for name, array in result.arrays.items()}
    grid.compare(pack(final, strategy.deployable_plan()))
    statuses, seconds = Counter(), []
    for row in strategy.ledger.rows:
        seconds.append(row.get("seconds", 0.0))
        if row["phase"] == "train":
            statuses[row["status"]] += 1
    return {
        "nodes": nodes,
        "rounds": rounds,
        "ledger_rows": len(strategy.ledger.rows),
        "statuses": dict(statuses),
        "honest": grid.honest,
        "beside": dict(grid.sent),
        "largest_difference": grid.largest_difference,
        "least_seconds_of_a_row": min(seconds),
        "resident_mb": memory,
        "seconds": time.monotonic() - start,
    }


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = run(options.nodes, options.rounds)
    (options.out / "hostile.json").write_text(json.dumps(found, indent=1) + "\n")
    memory = found.pop("resident_mb")
    print(json.dumps(found, indent=1))
    early = min(50, options.rounds)
    print(f"resident memory: {memory[early]:.1f} MB after round {early}, ", end="")
    print(f"{memory[options.rounds]:.1f} MB after round {options.rounds}")


if __name__ == "__main__":
    main()
