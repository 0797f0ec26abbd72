"""The in-process grid, with a log and faults to order, and what runs on it left."""

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from federation import Client, initial
from flwr.app import ArrayRecord, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result

from examples.inprocess import InProcessGrid
from flwr_autoflip import AutoFlip, client_app
from flwr_autoflip.ledger.ledger import node_rows

Fault = Callable[[int, Message], Message | None]


class LocalGrid(InProcessGrid):
    """Nodes 100, 101, ... run one ClientApp.

    Parameters
    ----------
    app : ClientApp
    num_nodes : int
    fault : callable, optional
        ``(node, reply) -> reply`` or None to lose it.
    """

    def __init__(
        self, app: ClientApp, num_nodes: int, fault: Fault | None = None
    ) -> None:
        super().__init__(app, num_nodes)
        self.fault = fault
        self.log: list[tuple[int, Message]] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the app on every message, in turn."""
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.log.append((node, message))
            reply: Message | None = self.answer(message)
            if self.fault is not None:
                reply = self.fault(node, reply)
            if reply is not None:
                replies.append(reply)
        return replies


def start(
    strategy: Any,
    rounds: int = 2,
    nodes: int = 4,
    app: ClientApp | None = None,
    fault: Fault | None = None,
    arrays: ArrayRecord | None = None,
    **given: Any,
) -> Result:
    """Run a strategy on nodes that are drawn in the same order every time."""
    random.seed(0)  # FedAvg draws from it
    grid = LocalGrid(app or client_app(Client), nodes, fault)
    result: Result = strategy.start(
        grid, arrays or initial(), num_rounds=rounds, **given
    )
    return result


def numbers(result: Result) -> dict[str, np.ndarray]:
    """Arrays of a run's model."""
    return {name: array.numpy() for name, array in result.arrays.items()}


def rows_of(
    strategy: AutoFlip, *phases: str, node: int | None = None
) -> list[dict[str, Any]]:
    """Rows of a ledger that are nodes': of all phases or some, of all nodes or one."""
    rows = node_rows(strategy.ledger.rows)
    chosen = [row for row in rows if not phases or row["phase"] in phases]
    return [row for row in chosen if node in (None, row["node"])]


def refused(strategy: AutoFlip, *phases: str) -> dict[int, str]:
    """Nodes, counted from 0, whose work did not count, and why."""
    rows = rows_of(strategy, *phases)
    return {r["node"] - 100: r["reason"] for r in rows if r["status"] != "ok"}
