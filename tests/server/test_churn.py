"""Nodes come, go, restart and dawdle: the run goes on, ledger and log say so."""

import logging
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from federation import EXAMPLE, RANDOM, Client, TinyNet, initial
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from grid import LocalGrid

from flwr_autoflip import AutoFlip, client_app
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.methods import Paper

NODES = 4
EVERYBODY = range(100, 100 + NODES)


class ChurnGrid(LocalGrid):
    """A grid whose nodes can be killed, added and restarted between phases.

    Parameters
    ----------
    events : dict of int to callable
        What happens to the grid just before the n-th phase, counted from 0.
    nodes : int
    """

    def __init__(
        self,
        events: dict[int, Callable[["ChurnGrid"], Any]] | None = None,
        nodes: int = NODES,
    ) -> None:
        super().__init__(client_app(Client), nodes)
        self.events, self.phase = events or {}, 0
        self.dead: set[int] = set()  # connected still, as far as the server knows
        self.slow: dict[int, float] = {}
        self.timeouts: list[float | None] = []
        self.late: list[Message] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        if not messages:  # a round's evaluation, which nobody is asked for
            return []
        self.events.get(self.phase, lambda grid: None)(self)
        self.phase += 1
        self.timeouts.append(timeout)
        replies, self.late = self.late, []
        for message in messages:
            node = message.metadata.dst_node_id
            reply = self.answer(message)
            if node not in self.contexts or node in self.dead:
                # So Flower reports it, from node 1.
                replies.append(Message(Error(3, "Node unavailable"), reply_to=message))
            elif timeout is not None and self.slow.get(node, 0) > timeout:
                self.late.append(reply)
            else:
                replies.append(reply)
        return replies

    def leave(self, node: int) -> None:
        """Let a node disconnect."""
        del self.contexts[node]

    def join(self, node: int, partition: int) -> None:
        """Let a node connect, with nothing in its state."""
        config = {"partition-id": partition, "num-partitions": NODES}
        self.contexts[node] = Context(1, node, config, RecordDict(), {})


def run(
    grid: ChurnGrid, rounds: int, method: Any = RANDOM, **given: Any
) -> tuple[AutoFlip, dict[str, np.ndarray]]:
    inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=2, min_train_nodes=1)
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, method=method)
    result = strategy.start(grid, initial(), num_rounds=rounds, **given)
    arrays = {name: array.numpy() for name, array in result.arrays.items()}
    assert all(np.isfinite(array).all() for array in arrays.values())
    return strategy, arrays


def by_round(strategy: AutoFlip, phase: str = "train") -> dict[int, dict[int, str]]:
    """Statuses by round and node."""
    found: dict[int, dict[int, str]] = {}
    for row in node_rows(strategy.ledger.rows):
        if row["phase"] == phase:
            found.setdefault(row["round"], {})[row["node"]] = row["status"]
    return found


def ok(*nodes: int) -> dict[int, str]:
    return dict.fromkeys(nodes, "ok")


def test_a_node_killed_in_mid_round(caplog: pytest.LogCaptureFixture) -> None:
    grid = ChurnGrid({1: lambda g: g.dead.add(101), 2: lambda g: g.leave(101)})

    with caplog.at_level(logging.WARNING, "flwr"):
        strategy, _ = run(grid, rounds=4)

    failed = ok(*EVERYBODY) | {101: "failed"}
    # Sampled in round 3 while it still counted as connected; then it is gone.
    assert by_round(strategy) == {
        **{1: ok(*EVERYBODY), 2: failed, 3: failed},
        4: ok(100, 102, 103),
    }
    row = next(r for r in node_rows(strategy.ledger.rows) if r["status"] == "failed")
    assert row["reason"] == "Node unavailable"
    assert row["bytes_down"] > 0 == row["bytes_up"]
    assert "failed reply of node 101: Node unavailable" in caplog.text


@pytest.mark.filterwarnings("ignore:T_p")
def test_nodes_that_join_late_or_restart_under_a_new_id_explore_first() -> None:
    def restart(grid: ChurnGrid) -> None:
        grid.leave(100)
        grid.join(900, 0)

    # Phases: exploring and training; then training alone, as long as nobody is new.
    grid = ChurnGrid({1: lambda g: g.join(103, 3), 4: restart}, nodes=3)

    strategy, _ = run(grid, 5, Paper(epochs=1))

    explored = {1: ok(100, 101, 102), 2: ok(103), 4: ok(900)}
    assert by_round(strategy, "explore") == explored
    assert by_round(strategy) == {
        1: ok(100, 101, 102),
        2: ok(*EVERYBODY),
        3: ok(*EVERYBODY) | {100: "failed"},  # it had been sampled before it went
        **dict.fromkeys((4, 5), ok(900, 101, 102, 103)),
    }


def test_a_straggler_past_the_timeout(caplog: pytest.LogCaptureFixture) -> None:
    grid = ChurnGrid(
        {0: lambda g: g.slow.update({102: 9.0}), 1: lambda g: g.slow.clear()}
    )

    with caplog.at_level(logging.WARNING, "flwr"):
        strategy, _ = run(grid, rounds=2, timeout=5.0)

    missing = ok(*EVERYBODY) | {102: "missing"}
    assert by_round(strategy) == {1: missing, 2: ok(*EVERYBODY)}
    assert "missing reply of node 102: no reply before the timeout" in caplog.text
    # Its reply came during round 2 and answers nothing that is open.
    assert "reply of node 102 answers no open request" in caplog.text


def test_a_straggler_changes_nothing() -> None:
    slow = ChurnGrid({0: lambda grid: grid.slow.update({102: 9.0})})
    dead = ChurnGrid({0: lambda grid: grid.dead.add(102)})

    _, with_slow = run(slow, rounds=3, timeout=5.0)
    _, with_dead = run(dead, rounds=3, timeout=5.0)

    for name, array in with_dead.items():
        np.testing.assert_allclose(  # FedAvg draws nodes in any order
            with_slow[name], array, rtol=1e-5, atol=1e-6
        )


@pytest.mark.filterwarnings("ignore:T_p")
def test_exploring_waits_no_longer_than_a_round_and_half_of_it_is_enough(
    caplog: pytest.LogCaptureFixture,
) -> None:
    grid = ChurnGrid(
        {0: lambda g: g.dead.update({100, 101}), 1: lambda g: g.dead.clear()}
    )

    with caplog.at_level(logging.WARNING, "flwr"):
        strategy, _ = run(grid, 1, Paper(epochs=1), timeout=5.0)

    assert set(grid.timeouts) == {5.0}
    halves = {100: "failed", 101: "failed", 102: "ok", 103: "ok"}
    assert by_round(strategy, "explore") == {1: halves}
    assert by_round(strategy) == {1: ok(*EVERYBODY)}
    assert caplog.text.count("failed reply of node") == 2


def test_a_round_with_no_replies_leaves_the_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    grid = ChurnGrid(
        {1: lambda g: g.dead.update(EVERYBODY), 2: lambda g: g.dead.clear()}
    )
    models: list[dict[str, np.ndarray]] = []

    def look(server_round: int, arrays: Any) -> None:
        models.append({name: a.numpy() for name, a in arrays.items()})

    with caplog.at_level(logging.WARNING, "flwr"):
        strategy, _ = run(grid, rounds=3, evaluate_fn=look)

    statuses = by_round(strategy)
    assert statuses[2] == dict.fromkeys(EVERYBODY, "failed")
    assert statuses[3] == ok(*EVERYBODY)
    assert "no valid reply: the global model stays as it was" in caplog.text
    for name, array in models[1].items():
        np.testing.assert_array_equal(models[2][name], array)
    assert any((models[3][name] != array).any() for name, array in models[2].items())


@pytest.mark.filterwarnings("ignore:T_p")
def test_everything_at_once() -> None:
    chance, ids = random.Random(1), iter(range(1000, 2000))

    def shake(grid: ChurnGrid) -> None:
        grid.dead = {node for node in grid.contexts if chance.random() < 0.2}
        grid.slow = {node: 9.0 for node in grid.contexts if chance.random() < 0.2}
        gone = chance.choice(sorted(grid.contexts))
        grid.leave(gone)
        grid.join(next(ids), gone % 8)

    grid = ChurnGrid(dict.fromkeys(range(1, 60), shake), nodes=8)

    strategy, _ = run(grid, 12, Paper(epochs=1), timeout=5.0)

    rows = [r for r in strategy.ledger.rows if r["phase"] == "train"]
    assert {r["round"] for r in rows} == set(range(1, 13))
    assert {r["status"] for r in rows} == {"ok", "failed", "missing"}
    assert len(rows) == 12 * 8
