"""What a run says while it goes, against what really travelled."""

import logging
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import EXAMPLE, Client, guided, initial, make_model, plain_app
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from examples.inprocess import InProcessGrid
from flwr_autoflip import AutoFlip, client_app, wire
from flwr_autoflip.graph.plan import dense_plan
from flwr_autoflip.ledger.cost import CostOf
from flwr_autoflip.ledger.ledger import Ledger, dense_bytes, node_rows, read_ledger
from flwr_autoflip.ledger.page.runs import Run, summarise
from flwr_autoflip.ledger.rows import NodeRow
from flwr_autoflip.server.progress import Progress, duration

LINE = re.compile(r"AutoFlip: round (\d+)/(\d+), (?:(\S+) ([\d.]+), )?(.*)")


def make_strategy(folder: Path | None = None, **options: Any) -> AutoFlip:
    inner = FedAvg(fraction_train=0.5, fraction_evaluate=0.5, min_available_nodes=4)
    return AutoFlip(
        inner, make_model(), EXAMPLE, **guided(ledger_dir=folder, **options)
    )


def run(strategy: AutoFlip, rounds: int = 3, **kwargs: Any) -> list[re.Match[str]]:
    """Run on four nodes; give the lines that were logged."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        grid = InProcessGrid(client_app(Client), 4)
        strategy.start(grid, initial(), num_rounds=rounds, **kwargs)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    found = (LINE.search(message) for message in messages)
    return [line for line in found if line]


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"loss": 1.0, "top1": 0.25 * server_round})


# --- Lines ---


@pytest.mark.filterwarnings("ignore:one explorer only")
def test_a_line_a_round_with_all_that_was_promised() -> None:
    strategy = make_strategy()
    lines = run(strategy, evaluate_fn=evaluate)

    assert [line[1] for line in lines] == ["1", "2", "3"]
    assert [(line[3], line[4]) for line in lines] == [
        ("top1", "0.250"),
        ("top1", "0.500"),
        ("top1", "0.750"),
    ]
    kept = strategy.deployable_plan().num_parameters / strategy.layout.num_parameters
    found = summarise(Run("", strategy.ledger.rows))
    moved = found["bytes_down"] + found["bytes_up"]
    share = found["saved_bytes"] / found["dense_bytes"]
    said = f"{100 * kept:.0f} % of parameters, {moved / 1e6:.2f} MB so far, "
    said += f"{found['saved_bytes'] / 1e6:.2f} MB saved ({100 * share:.0f} %), 0s left"
    assert lines[-1][5] == said


def test_nodes_figures_end_a_round_without_an_evaluate_fn() -> None:
    lines = run(make_strategy(policy="l1"))

    assert [line[1] for line in lines] == ["1", "2", "3"]
    assert {line[3] for line in lines} == {"loss"}  # there is no accuracy


def test_rounds_without_any_evaluation_have_lines_too() -> None:
    strategy = make_strategy(policy="l1")
    strategy.strategy.fraction_evaluate = 0.0  # type: ignore[attr-defined]

    lines = run(strategy)

    assert [line[1] for line in lines] == ["1", "2", "3"]
    assert {line[3] for line in lines} == {None}


def test_exploring_can_make_savings_negative(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger = Ledger()
    progress = Progress(ledger, CostOf(make_model(), EXAMPLE))
    dense = progress.dense_message
    ledger.add(NodeRow(0, "explore", 1, bytes_down=5 * dense["down"]))
    row = NodeRow(1, "train", 1, bytes_down=dense["down"], bytes_up=dense["up"])
    ledger.add(row)
    progress.begin(1)
    with caplog.at_level(logging.INFO, logger="flwr"):
        progress.end_round(1, dense_plan(make_strategy().layout), None)

    share = 5 * dense["down"] / (dense["down"] + dense["up"])
    said = f"-{5 * dense['down'] / 1e6:.2f} MB saved (-{100 * share:.0f} %)"
    assert said in caplog.text


def test_the_time_left_is_written_as_people_say_it() -> None:
    given = (0, 59.4, 59.6, 125, 3599.6, 11400)

    assert [duration(s) for s in given] == [
        *("0s", "59s", "1m 00s", "2m 05s", "1h 00m", "3h 10m"),
    ]


def test_a_nodes_metric_cannot_forge_lines(caplog: pytest.LogCaptureFixture) -> None:
    name = "accuracy\x1b[2J\n\t└──> AutoFlip: round 9/9 \u202e" + "x" * 500

    class Liar(Client):
        def test(self, model: Any, config: Any) -> tuple[float, int, dict[str, Any]]:
            loss, count, metrics = super().test(model, config)
            return loss, count, {**metrics, name: 1.0}

    with caplog.at_level(logging.INFO, logger="flwr"):
        make_strategy(policy="l1").start(
            InProcessGrid(client_app(Liar), 4), initial(), num_rounds=1
        )

    assert "\x1b" not in caplog.text
    lines = [line.split(": ", 1)[-1] for line in caplog.text.splitlines()]
    (ours,) = [line for line in lines if line.startswith("round 1/1")]
    assert ours.startswith("round 1/1, loss")  # a name that cannot be shown is none
    assert ours.isprintable()
    assert len(ours) < 250


# --- The dense model's bytes ---


class Counting(InProcessGrid):
    """Adds up what really travels."""

    moved = 0

    def answer(self, message: Message) -> Message:
        reply = super().answer(message)
        self.moved += wire.count_bytes(message.content) + wire.count_bytes(
            reply.content
        )
        return reply


def test_the_reference_is_what_fedavg_itself_moves() -> None:
    """The same messages, sent by Flower's strategy to Flower's own clients."""
    random.seed(0)
    grid = Counting(plain_app(), 4)
    inner = FedAvg(fraction_train=0.5, fraction_evaluate=0.5, min_available_nodes=4)
    inner.start(grid, initial(), num_rounds=3)

    strategy = make_strategy(policy="l1")
    run(strategy)

    rows = node_rows(strategy.ledger.rows)
    (plan,) = [row for row in strategy.ledger.rows if row["phase"] == "plan"]
    reference = sum(dense_bytes(row, plan["dense_message"]) for row in rows)
    assert len(rows) == 12
    assert reference == pytest.approx(grid.moved, rel=0.01)


# --- Plans in the ledger ---


@pytest.mark.filterwarnings("ignore:one explorer only")
def test_a_plan_is_written_once_with_its_guidance() -> None:
    strategy = make_strategy()
    run(strategy, evaluate_fn=evaluate)

    (row,) = [row for row in strategy.ledger.rows if row["phase"] == "plan"]
    assert row["round"] == 0
    plan = strategy.deployable_plan()
    assert row["plan"]["units"] == {name: len(k) for name, k in plan.keep.items()}
    assert row["dense_units"] == {g.name: g.size for g in strategy.layout.groups}
    for name, counts in row["importance"].items():
        assert sum(counts["kept"]) == len(plan.keep[name])
        assert sum(counts["kept"] + counts["pruned"]) == row["dense_units"][name]
        assert 0 < counts["top"] <= 1


@pytest.mark.filterwarnings("ignore")  # tiny models prune nothing, and say so
def test_plans_of_every_round_are_written_and_guidance_once() -> None:
    strategy = make_strategy(preset="paper")
    run(strategy, rounds=4)

    plans = [row for row in strategy.ledger.rows if row["phase"] == "plan"]
    assert [row["round"] for row in plans][:1] == [1]
    assert len({row["digest"] for row in plans}) >= 2
    assert ["importance" in row for row in plans] == [True] + [False] * (len(plans) - 1)


@pytest.mark.parametrize("policy", ["l1", "dense"])
def test_without_exploring_there_is_no_guidance(policy: str) -> None:
    strategy = make_strategy(policy=policy)
    run(strategy, rounds=1)

    (row,) = [row for row in strategy.ledger.rows if row["phase"] == "plan"]
    assert "importance" not in row


def test_the_same_plan_is_not_written_again() -> None:
    ledger = Ledger()
    live = Progress(ledger, CostOf(make_model(), EXAMPLE))
    strategy = make_strategy(policy="dense")
    scores = {g.name: np.ones(g.size) for g in strategy.layout.groups}
    for number in range(3):
        live.plan_made(number, dense_plan(strategy.layout), lambda: scores)

    assert [row["round"] for row in ledger.rows] == [0]


# --- The file ---


def test_another_process_reads_every_row_as_soon_as_it_is_there(
    tmp_path: Path,
) -> None:
    """In the middle of a run, without its being over or closed."""
    code = "import sys, json; sys.stdout.writelines(open(sys.argv[1]))"
    counts = []

    def look(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        path = str(tmp_path / "ledger.jsonl")
        done = subprocess.run(
            [sys.executable, "-S", "-c", code, path],
            capture_output=True,
            text=True,
            check=True,
        )
        counts.append((len(done.stdout.splitlines()), len(strategy.ledger.rows)))
        return MetricRecord({"top1": 0.5})

    strategy = make_strategy(tmp_path, policy="l1")
    run(strategy, rounds=2, evaluate_fn=look)

    assert len(counts) == 3  # once before the rounds, once after each
    assert all(seen == written for seen, written in counts)
    assert counts[0][1] < counts[-1][1]
    assert read_ledger(tmp_path / "ledger.jsonl") == strategy.ledger.rows
