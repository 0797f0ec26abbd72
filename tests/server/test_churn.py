"""Nodes come, go, restart and dawdle: the run goes on, ledger and log say so."""

import logging
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from federation import EXAMPLE, Client, TinyNet, guided, initial
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from grid import LocalGrid

from flwr_autoflip import AutoFlip, client_app
from flwr_autoflip.ledger.ledger import node_rows

NODES = 4


class ChurnGrid(LocalGrid):
    """A grid whose nodes can be killed, added and restarted between phases.

    Parameters
    ----------
    nodes : int
    events : dict of int to callable
        What happens to the grid just before the n-th phase, counted from 0.
    """

    def __init__(self, nodes: int, events: dict[int, Any] | None = None) -> None:
        super().__init__(client_app(Client), nodes)
        self.events = events or {}
        self.phase = 0
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
        replies = self.late
        self.late = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.log.append((node, message))
            reply = self.answer(message)
            if (
                node not in self.contexts or node in self.dead
            ):  # so Flower reports it, from node 1
                replies.append(Message(Error(3, "Node unavailable"), reply_to=message))
                continue
            if timeout is not None and self.slow.get(node, 0) > timeout:
                self.late.append(reply)
            else:
                replies.append(reply)
        return replies

    def leave(self, node: int) -> None:
        """Let a node disconnect."""
        del self.contexts[node]

    def join(self, node: int, partition: int) -> None:
        """Let a node connect, with nothing in its state."""
        self.contexts[node] = Context(
            run_id=1,
            node_id=node,
            node_config={"partition-id": partition, "num-partitions": NODES},
            state=RecordDict(),
            run_config={},
        )


def build(**options: Any) -> AutoFlip:
    inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=2, min_train_nodes=1)
    return AutoFlip(inner, TinyNet(), EXAMPLE, **guided(0.5, **options))


def by_round(strategy: AutoFlip, phase: str = "train") -> dict[int, dict[int, str]]:
    """Statuses by round and node."""
    found: dict[int, dict[int, str]] = {}
    for row in node_rows(strategy.ledger.rows):
        if row["phase"] == phase:
            found.setdefault(row["round"], {})[row["node"]] = row["status"]
    return found


def run(strategy: AutoFlip, grid: ChurnGrid, rounds: int, **kwargs: Any) -> Any:
    arrays = strategy.start(grid, initial(), num_rounds=rounds, **kwargs).arrays
    assert all(np.isfinite(array.numpy()).all() for array in arrays.values())
    return arrays


def test_a_node_killed_in_mid_round(caplog: pytest.LogCaptureFixture) -> None:
    grid = ChurnGrid(
        NODES,
        {2: lambda grid: grid.dead.add(101), 3: lambda grid: grid.leave(101)},
    )
    strategy = build()

    with caplog.at_level(logging.WARNING, "flwr"):
        run(strategy, grid, rounds=4)

    statuses = by_round(strategy)
    assert statuses[1][101] == "ok"
    assert statuses[2] == {100: "ok", 101: "failed", 102: "ok", 103: "ok"}
    # Sampled in round 3 while it still counted as connected; then it is gone.
    assert statuses[3][101] == "failed"
    assert set(statuses[4]) == {100, 102, 103}
    row = next(r for r in node_rows(strategy.ledger.rows) if r["status"] == "failed")
    assert row["reason"] == "Node unavailable"
    assert row["bytes_down"] > 0 == row["bytes_up"]
    assert "failed reply of node 101: Node unavailable" in caplog.text


@pytest.mark.parametrize("guidance_from", ["explorers", "participants"])
def test_a_node_that_joins_late(guidance_from: Any) -> None:
    # Phases: exploring, round 1; with participants the late one's exploring follows.
    grid = ChurnGrid(3, {1: lambda grid: grid.join(103, 3)})
    exact = {"rescale": False} if guidance_from == "explorers" else {}
    strategy = build(guidance_from=guidance_from, **exact)

    run(strategy, grid, rounds=3)

    statuses, explored = by_round(strategy), by_round(strategy, "explore")
    assert set(statuses[1]) == {100, 101, 102}
    assert statuses[2][103] == statuses[3][103] == "ok"
    late = [r for r in node_rows(strategy.ledger.rows) if r["node"] == 103]
    assert late[0]["plan_bytes"] > 200  # model's layout and the whole plan
    assert late[-1]["plan_bytes"] == 16 or guidance_from == "participants"
    if guidance_from == "explorers":  # one plan for the run needs no more reports
        assert set(explored) == {0}
    else:  # it explored when first sampled, once, and its report is in force
        assert explored[2] == {103: "ok"}
        assert set(explored) == {0, 2}
        assert 103 in strategy.reports


def test_a_node_that_restarts_under_a_new_id() -> None:
    def restart(grid: ChurnGrid) -> None:
        grid.leave(100)
        grid.join(900, 0)

    grid = ChurnGrid(NODES, {2: restart})
    strategy = build(guidance_from="participants")
    seen: set[int] = set()

    run(strategy, grid, rounds=4)

    statuses = by_round(strategy)
    assert statuses[2][100] == "failed"  # it had been sampled before it went
    for server_round in (3, 4):
        assert statuses[server_round] == dict.fromkeys((900, 101, 102, 103), "ok")
    assert by_round(strategy, "explore")[3] == {900: "ok"}
    seen = {row["node"] for row in node_rows(strategy.ledger.rows)}
    assert seen == {100, 900, 101, 102, 103}


def test_a_straggler_past_the_timeout(caplog: pytest.LogCaptureFixture) -> None:
    grid = ChurnGrid(
        NODES,
        {
            1: lambda grid: grid.slow.update({102: 9.0}),
            2: lambda grid: grid.slow.clear(),
        },
    )
    strategy = build()

    with caplog.at_level(logging.WARNING, "flwr"):
        run(strategy, grid, rounds=2, timeout=5.0)

    assert set(grid.timeouts) == {5.0}  # exploring waits no longer than a round
    statuses = by_round(strategy)
    assert statuses[1] == {100: "ok", 101: "ok", 102: "missing", 103: "ok"}
    assert statuses[2] == dict.fromkeys(range(100, 104), "ok")
    assert "missing reply of node 102: no reply before the timeout" in caplog.text
    # Its reply came during round 2 and answers nothing that is open.
    assert "reply of node 102 answers no open request" in caplog.text


def test_a_straggler_changes_nothing() -> None:
    slow = ChurnGrid(NODES, {1: lambda grid: grid.slow.update({102: 9.0})})
    dead = ChurnGrid(NODES, {1: lambda grid: grid.dead.add(102)})

    with_slow = run(build(), slow, rounds=3, timeout=5.0)
    with_dead = run(build(), dead, rounds=3, timeout=5.0)

    for name, array in with_dead.items():
        np.testing.assert_allclose(  # replies come, and are summed, in any order
            with_slow[name].numpy(), array.numpy(), rtol=1e-5, atol=1e-6
        )


def test_exploring_answered_by_half_of_the_nodes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    grid = ChurnGrid(
        NODES,
        {0: lambda grid: grid.dead.update({100, 101}), 1: lambda g: g.dead.clear()},
    )
    strategy = build()

    with caplog.at_level(logging.WARNING, "flwr"):
        run(strategy, grid, rounds=1)

    halves = {100: "failed", 101: "failed", 102: "ok", 103: "ok"}
    assert by_round(strategy, "explore")[0] == halves
    assert set(strategy.reports) == {102, 103}
    assert by_round(strategy)[1] == dict.fromkeys(range(100, 104), "ok")
    assert caplog.text.count("failed reply of node") == 2


def test_a_round_with_no_replies(caplog: pytest.LogCaptureFixture) -> None:
    everybody = set(range(100, 104))
    grid = ChurnGrid(
        NODES,
        {2: lambda grid: grid.dead.update(everybody), 3: lambda g: g.dead.clear()},
    )
    strategy, sent = build(), {}
    inner = strategy.configure_train

    def watch(server_round: int, arrays: Any, *rest: Any) -> list[Message]:
        sent[server_round] = {name: a.numpy() for name, a in arrays.items()}
        return inner(server_round, arrays, *rest)

    strategy.configure_train = watch  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, "flwr"):
        run(strategy, grid, rounds=3)

    statuses = by_round(strategy)
    assert statuses[2] == dict.fromkeys(everybody, "failed")
    assert statuses[3] == dict.fromkeys(everybody, "ok")
    assert "no valid reply: the global model stays as it was" in caplog.text
    for name, array in sent[2].items():
        np.testing.assert_array_equal(sent[3][name], array)
    assert any((sent[1][name] != array).any() for name, array in sent[2].items())
    # Nobody is known to hold the plan any more: all of them are sent it again.
    plans = [
        r["plan_bytes"] for r in node_rows(strategy.ledger.rows) if r["round"] == 3
    ]
    assert min(plans) > 200


def test_everything_at_once() -> None:
    chance = random.Random(1)
    grid = ChurnGrid(8)
    ids = iter(range(1000, 2000))

    def shake(grid: ChurnGrid) -> None:
        grid.dead = {node for node in grid.contexts if chance.random() < 0.2}
        grid.slow = {node: 9.0 for node in grid.contexts if chance.random() < 0.2}
        gone = chance.choice(sorted(grid.contexts))
        grid.leave(gone)
        grid.join(next(ids), gone % 8)

    grid.events = {phase: shake for phase in range(1, 60)}
    strategy = build(guidance_from="participants")

    run(strategy, grid, rounds=12, timeout=5.0)

    rows = [r for r in strategy.ledger.rows if r["phase"] == "train"]
    assert {r["round"] for r in rows} == set(range(1, 13))
    assert {r["status"] for r in rows} == {"ok", "failed", "missing"}
    assert len(rows) == 12 * 8
