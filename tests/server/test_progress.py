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
from federation import (
    EXAMPLE,
    RANDOM,
    Client,
    exploring,
    initial,
    make_model,
    plain_app,
)
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from examples.inprocess import InProcessGrid
from flwr_autoflip import AutoFlip, client_app, wire
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.ledger.cost import CostOf
from flwr_autoflip.ledger.ledger import Ledger, dense_bytes, node_rows, read_ledger
from flwr_autoflip.ledger.page.runs import Run, summarise
from flwr_autoflip.ledger.rows import NodeRow
from flwr_autoflip.server.progress import Progress, duration

LINE = re.compile(r"AutoFlip: round (\d+)/(\d+), (?:(\S+) ([\d.]+), )?(.*)")


def build(**options: Any) -> AutoFlip:
    half = {"fraction_train": 0.5, "fraction_evaluate": 0.5, "min_available_nodes": 4}
    inner = FedAvg(**{**half, **options.pop("inner", {})})
    return AutoFlip(inner, make_model(), EXAMPLE, **{"method": RANDOM, **options})


def run(
    strategy: AutoFlip, caplog: Any, rounds: int = 3, **given: Any
) -> list[re.Match[str]]:
    """Run on four nodes; give the lines that were logged."""
    with caplog.at_level(logging.INFO, logger="flwr"):
        grid = InProcessGrid(client_app(Client), 4)
        strategy.start(grid, initial(), num_rounds=rounds, **given)
    found = (LINE.search(record.getMessage()) for record in caplog.records)
    return [line for line in found if line]


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"loss": 1.0, "top1": 0.25 * server_round})


def plans_of(strategy: AutoFlip) -> list[dict[str, Any]]:
    return [row for row in strategy.ledger.rows if row["phase"] == "plan"]


# --- Lines ---


def test_a_line_a_round_with_all_that_was_promised(caplog: Any) -> None:
    strategy = build()

    lines = run(strategy, caplog, evaluate_fn=evaluate)

    assert [line.groups()[:4] for line in lines] == [
        (str(number), "3", "top1", f"{number / 4:.3f}") for number in (1, 2, 3)
    ]
    kept = strategy.deployable_plan.num_parameters / strategy.layout.num_parameters
    found = summarise(Run("", strategy.ledger.rows))
    moved = found["bytes_down"] + found["bytes_up"]
    share = found["saved_bytes"] / found["dense_bytes"]
    assert lines[-1][5] == (
        f"{100 * kept:.0f} % of parameters, {moved / 1e6:.2f} MB so far, "
        f"{found['saved_bytes'] / 1e6:.2f} MB saved ({100 * share:.0f} %), 0s left"
    )


@pytest.mark.parametrize(("fraction", "figure"), [(0.5, "loss"), (0.0, None)], ids=str)
def test_without_an_evaluate_fn_rounds_end_with_the_nodes(
    fraction: float, figure: str | None, caplog: Any
) -> None:
    lines = run(build(inner={"fraction_evaluate": fraction}), caplog)

    assert [(line[1], line[3]) for line in lines] == [
        (number, figure) for number in "123"
    ]


def test_savings_may_be_negative(caplog: pytest.LogCaptureFixture) -> None:
    ledger, model = Ledger(), make_model()
    progress = Progress(ledger, CostOf(model, EXAMPLE))
    dense = progress.dense_message
    ledger.add(NodeRow(1, "explore", 1, bytes_down=5 * dense["down"]))
    row = NodeRow(1, "train", 1, bytes_down=dense["down"], bytes_up=dense["up"])
    ledger.add(row)

    progress.begin(1)
    with caplog.at_level(logging.INFO, logger="flwr"):
        progress.end_round(1, dense_plan(trace(model, EXAMPLE)), None)

    share = 5 * dense["down"] / (dense["down"] + dense["up"])
    said = f"-{5 * dense['down'] / 1e6:.2f} MB saved (-{100 * share:.0f} %)"
    assert said in caplog.text


def test_the_time_left_is_written_as_people_say_it() -> None:
    given = (0, 59.4, 59.6, 125, 3599.6, 11400)

    assert " ".join(map(duration, given)) == "0s 59s 1m 00s 2m 05s 1h 00m 3h 10m"


def test_a_nodes_metric_cannot_forge_lines(caplog: pytest.LogCaptureFixture) -> None:
    name = "accuracy\x1b[2J\n\t└──> AutoFlip: round 9/9 \u202e" + "x" * 500

    class Liar(Client):
        def test(self, model: Any, config: Any) -> tuple[float, int, dict[str, Any]]:
            loss, count, metrics = super().test(model, config)
            return loss, count, {**metrics, name: 1.0}

    with caplog.at_level(logging.INFO, logger="flwr"):
        build().start(InProcessGrid(client_app(Liar), 4), initial(), num_rounds=1)

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
        contents = message.content, reply.content
        self.moved += sum(map(wire.count_bytes, contents))
        return reply


def test_the_reference_is_what_fedavg_itself_moves(caplog: Any) -> None:
    """The same messages, sent by Flower's strategy to Flower's own clients."""
    random.seed(0)
    grid, strategy = Counting(plain_app(), 4), build()
    inner = FedAvg(fraction_train=0.5, fraction_evaluate=0.5, min_available_nodes=4)
    inner.start(grid, initial(), num_rounds=3)

    run(strategy, caplog)

    rows, (plan,) = node_rows(strategy.ledger.rows), plans_of(strategy)
    reference = sum(dense_bytes(row, plan["dense_message"]) for row in rows)
    assert len(rows) == 12
    assert reference == pytest.approx(grid.moved, rel=0.01)


# --- Plans in the ledger ---


def test_plans_are_written_with_the_importance_of_the_first_that_prunes(
    caplog: Any,
) -> None:
    strategy = build(**exploring(), inner={"fraction_train": 1.0})

    run(strategy, caplog, evaluate_fn=evaluate)

    rows, plan = plans_of(strategy), strategy.deployable_plan
    assert [row["round"] for row in rows] == [1, 2]
    for row, keep in zip(rows, (dense_plan(plan.layout).keep, plan.keep), strict=True):
        assert row["plan"]["units"] == {name: len(kept) for name, kept in keep.items()}
        assert row["dense_units"] == {g.name: g.size for g in plan.layout.groups}
    assert ["importance" in row for row in rows] == [False, True]
    for name, counts in rows[1]["importance"].items():
        assert sum(counts["kept"]) == len(plan.keep[name])
        assert sum(counts["kept"] + counts["pruned"]) == rows[1]["dense_units"][name]


def test_the_plan_that_is_written_last_is_not_written_again() -> None:
    ledger, layout = Ledger(), trace(make_model(), EXAMPLE)
    dense, scores = dense_plan(layout), {g.name: np.ones(g.size) for g in layout.groups}
    small = Plan(layout, {name: np.array([1]) for name in scores})

    for number, plan in enumerate((dense, dense, small, small, dense, small)):
        # Each time another process goes on with the ledger.
        progress = Progress(ledger, CostOf(make_model(), EXAMPLE))
        for _ in range(2):
            progress.plan_made(number, plan, lambda: scores)

    assert [row["round"] for row in ledger.rows] == [0, 2, 4, 5]
    assert ["importance" in row for row in ledger.rows] == [False, True, False, False]


# --- The file ---


def test_another_process_reads_every_row_as_soon_as_it_is_there(
    tmp_path: Path, caplog: Any
) -> None:
    """In the middle of a run, without its being over or closed."""
    code = "import sys, json; sys.stdout.writelines(open(sys.argv[1]))"
    path, counts = tmp_path / "ledger.jsonl", []

    def look(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        command = [sys.executable, "-S", "-c", code, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        counts.append((len(done.stdout.splitlines()), len(strategy.ledger.rows)))
        return MetricRecord({"top1": 0.5})

    strategy = build(ledger_dir=tmp_path)
    run(strategy, caplog, rounds=2, evaluate_fn=look)

    assert len(counts) == 3  # once before the rounds, once after each
    assert all(seen == written for seen, written in counts)
    assert counts[0][1] < counts[-1][1]
    assert read_ledger(path) == strategy.ledger.rows
