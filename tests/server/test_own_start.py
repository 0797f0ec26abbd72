"""A strategy that overrides ``start()`` keeps what it does there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import EXAMPLE, Client, TinyNet, initial
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Result,
    Strategy,
)
from grid import LocalGrid

from flwr_autoflip import AutoFlip, AutoFlipError, client_app
from flwr_autoflip.ledger.ledger import node_rows

NODES = 3


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    zeros = sum(int((a.numpy() == 0).sum()) for a in arrays.values())
    return MetricRecord({"accuracy": 0.1 * server_round, "zeros": zeros})


def build(inner: Strategy, **options: Any) -> AutoFlip:
    exactly = {"value_dtype": "float32", **options}
    return AutoFlip(inner, TinyNet(), EXAMPLE, **exactly)


def run(strategy: AutoFlip, **given: Any) -> Any:
    given = {"num_rounds": 2, "evaluate_fn": evaluate, **given}
    return strategy.start(LocalGrid(client_app(Client), NODES), initial(), **given)


class CopiedLoop(FedAvg):
    """What Flower's advanced example does: the loop anew, the best model saved."""

    best = 0.0

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Any = None,
    ) -> Result:
        self.summary()
        self.saved: list[tuple[int, ArrayRecord]] = []
        train_config = train_config or ConfigRecord()
        evaluate_config = evaluate_config or ConfigRecord()
        result, arrays = Result(), initial_arrays
        for server_round in range(1, num_rounds + 1):
            replies = grid.send_and_receive(
                self.configure_train(server_round, arrays, train_config, grid),
                timeout=timeout,
            )
            found, metrics = self.aggregate_train(server_round, replies)
            if found is not None:
                result.arrays = arrays = found
            if metrics is not None:
                result.train_metrics_clientapp[server_round] = metrics
            replies = grid.send_and_receive(
                self.configure_evaluate(server_round, arrays, evaluate_config, grid),
                timeout=timeout,
            )
            self.aggregate_evaluate(server_round, replies)
            scores = evaluate_fn(server_round, arrays)
            result.evaluate_metrics_serverapp[server_round] = scores
            if scores["accuracy"] > self.best:
                self.best = scores["accuracy"]
                self.saved.append((server_round, arrays))
        return result


class AroundTheLoop(FedAvg):
    """Something before, something after, arguments of its own."""

    def start(self, *args: Any, note: str = "", **kwargs: Any) -> Result:
        self.notes = [f"before {note}"]
        result = super().start(*args, **kwargs)
        self.notes.append(f"after {note} {len(result.train_metrics_clientapp)}")
        return result


def test_a_copied_loop_runs_on_small_models_and_keeps_its_best() -> None:
    inner = CopiedLoop()
    strategy, plain = build(inner), build(FedAvg())

    result, expected = run(strategy), run(plain)

    assert [number for number, _ in inner.saved] == [1, 2]
    assert inner.best == 0.2  # on the object that the app holds
    assert {row["status"] for row in node_rows(strategy.ledger.rows)} == {"ok"}
    for name, array in expected.arrays.items():
        np.testing.assert_allclose(
            result.arrays[name].numpy(), array.numpy(), atol=1e-6
        )
    ours, others = strategy.ledger.rows, plain.ledger.rows
    assert [row["phase"] for row in node_rows(ours)] == [
        row["phase"] for row in node_rows(others)
    ]
    # The evaluation is of the model that would be deployed.
    assert result.evaluate_metrics_serverapp[2]["zeros"] > 0


def test_what_stands_around_super_start_runs() -> None:
    inner = AroundTheLoop()
    strategy = build(inner)

    result = run(strategy, note="mine")

    assert inner.notes == ["before mine", "after mine 2"]
    small = strategy.deployable_plan.num_parameters
    trained = [r for r in node_rows(strategy.ledger.rows) if r["phase"] == "train"]
    assert {row["parameters"] for row in trained} == {small}
    assert len(result.evaluate_metrics_clientapp) == 2


def test_a_wrapper_around_it_stays_in_the_rounds() -> None:
    inner = AroundTheLoop()
    private = DifferentialPrivacyServerSideFixedClipping(inner, 0.0, 1e-6, NODES)
    strategy = build(private)

    result = run(strategy)

    assert inner.notes[-1] == "after  2"
    moved = result.arrays["fc2.bias"].numpy() - initial()["fc2.bias"].numpy()
    assert np.linalg.norm(moved) <= 2e-6  # clipped in both rounds


def test_its_own_defaults_hold() -> None:
    class Once(FedAvg):
        def start(
            self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int = 1
        ) -> Result:
            return super().start(grid, initial_arrays, num_rounds=num_rounds)

    strategy = build(Once())

    result = strategy.start(LocalGrid(client_app(Client), NODES), initial())

    assert list(result.train_metrics_clientapp) == [1]


def test_it_can_run_twice_and_leaves_the_inner_strategy_as_it_was() -> None:
    inner = AroundTheLoop()

    run(build(inner))
    run(build(inner))

    assert type(inner) is AroundTheLoop
    assert inner.notes == ["before ", "after  2"]


def test_an_argument_that_nobody_knows_is_refused() -> None:
    with pytest.raises(TypeError, match="rounds"):
        run(build(FedAvg()), rounds=2)


def test_arguments_that_its_start_does_not_take_are_refused() -> None:
    class Bare(FedAvg):
        def start(self, grid: Grid, initial_arrays: ArrayRecord) -> Result:
            return super().start(grid, initial_arrays, num_rounds=1)

    with pytest.raises(TypeError, match=r"num_rounds|evaluate_fn"):
        run(build(Bare()))


def test_a_start_that_runs_rounds_elsewhere_is_an_error() -> None:
    class Elsewhere(FedAvg):
        def start(self, *args: Any, **kwargs: Any) -> Result:
            return FedAvg().start(*args, **kwargs)

    with pytest.raises(AutoFlipError, match="never asked AutoFlip"):
        run(build(Elsewhere(fraction_evaluate=0.0)))


def test_it_cannot_go_on_after_a_stop(tmp_path: Path) -> None:
    with pytest.raises(AutoFlipError, match=r"CopiedLoop overrides start\(\)"):
        build(CopiedLoop(), checkpoint_dir=tmp_path)
