"""What one node says, or one strategy raises, costs at most a round, never the run."""

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from federation import EXAMPLE, RANDOM, Client, TinyNet, numpy_app
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    QFedAvg,
    Result,
    Strategy,
)
from grid import Fault, numbers, rows_of, start
from torch import nn

from flwr_autoflip import AutoFlip, AutoFlipError, autoflip_mod, client_app

NODES, BAD = 5, 101
Spoil = Callable[[Message], None]


def run(
    spoil: Spoil = lambda reply: None,
    inner: Strategy | None = None,
    rounds: int = 2,
    app: ClientApp | None = None,
    fault: Fault | None = None,
    model: Callable[[], nn.Module] = TinyNet,
    kind: type[AutoFlip] = AutoFlip,
    **options: Any,
) -> tuple[AutoFlip, Result]:
    """Run a federation in which one node's replies are spoilt, or all are faulty."""

    def spoilt(node: int, reply: Message) -> Message | None:
        if node == BAD:
            spoil(reply)
        return reply

    options = {"method": RANDOM, "value_dtype": "float32", **options}
    inner = FedAvg(min_available_nodes=NODES) if inner is None else inner
    dense = model()
    strategy = kind(inner, dense, EXAMPLE, **options)
    arrays = None if model is TinyNet else ArrayRecord(dense.state_dict())
    return strategy, start(strategy, rounds, NODES, app, fault or spoilt, arrays)


def assert_equal(found: Result, expected: Result) -> None:
    for name, array in numbers(expected).items():
        np.testing.assert_array_equal(numbers(found)[name], array, name)


def assert_finite(result: Result) -> None:
    assert all(np.isfinite(array).all() for array in numbers(result).values())


def no_evaluation() -> FedAvg:
    return FedAvg(fraction_evaluate=0.0)


# --- Metrics ---


def metrics(**changes: Any) -> Spoil:
    def spoil(reply: Message) -> None:
        (key,) = reply.content.metric_records
        known = dict(reply.content[key].items())
        reply.content[key] = MetricRecord({**known, **changes})

    return spoil


UNUSABLE: dict[str, tuple[Spoil, str]] = {
    "empty list": (metrics(loss=[]), "'loss' is an empty list"),
    "NaN": (metrics(loss=float("nan")), "'loss' is not finite"),
    "infinite in a list": (metrics(loss=[1.0, float("inf")]), "'loss' is not finite"),
    "long name": (metrics(**{"x" * 129: 1.0}), "more than 128 characters"),
    "long list": (metrics(more=[1.0] * 10_001), "more than 10000 numbers"),
    "long lists": (metrics(a=[1.0] * 6_000, b=[1.0] * 6_000), "numbers, at most 10000"),
    "many": (metrics(**{f"m{i}": 1.0 for i in range(1_001)}), "at most 1000"),
    "escapes": (metrics(**{"\x1b[31m\n[ERROR] all is lost": 1.0}), "'?[31m [ERROR]"),
    "a name of ours": (metrics(**{"autoflip-seconds": 1e9}), "a name of ours"),
}
INNER: list[Callable[[], Strategy]] = [
    FedAvg,
    FedAdam,
    lambda: FedAvgM(server_momentum=0.5),
    FedMedian,
    FedTrimmedAvg,
    lambda: Krum(num_malicious_nodes=1),
    lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0, 5, NODES),
]


@pytest.mark.parametrize("kind", UNUSABLE)
def test_metrics_that_nobody_can_average_are_left_out_and_training_counts(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, reason = UNUSABLE[kind]

    with caplog.at_level(logging.WARNING, "flwr"):
        strategy, result = run(spoil)

    assert_equal(result, run()[1])
    assert [row["status"] for row in rows_of(strategy, node=BAD)] == ["ok"] * 4
    assert all(reason in row["reason"] for row in rows_of(strategy, node=BAD))
    assert rows_of(strategy, node=BAD + 1)[0]["reason"] == ""
    said = [record.getMessage() for record in caplog.records]
    own = [text for text in said if f"reply of node {BAD}: metrics left out" in text]
    assert len(own) == 4
    assert all(text.strip("\t").isprintable() for text in own)


@pytest.mark.parametrize("inner", INNER)
def test_no_metric_ends_a_run(inner: Any, tmp_path: Any) -> None:
    strategy, result = run(metrics(loss=[]), inner(), checkpoint_dir=tmp_path)

    assert len(result.train_metrics_clientapp) == 2
    assert_finite(result)
    assert {row["status"] for row in rows_of(strategy, node=BAD)} == {"ok"}


def test_a_numpy_clients_metrics_are_checked_likewise() -> None:
    def spoil(reply: Message) -> None:
        for key in ("fitres.metrics", "evaluateres.metrics"):
            if key in reply.content:
                reply.content[key]["loss"] = float("nan")

    app = numpy_app([autoflip_mod])
    strategy, result = run(spoil, app=app)

    assert_equal(result, run(app=app)[1])
    assert "'loss' is not finite" in rows_of(strategy, node=BAD)[0]["reason"]


def test_nodes_whose_metrics_differ_keep_their_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def spoil(reply: Message) -> None:
        record = reply.content["metrics"]
        record["mine"] = 1.0
        record["loss"] = [0.5, 0.5]  # a list here, a number there

    with caplog.at_level(logging.WARNING, "flwr"):
        strategy, result = run(spoil, no_evaluation(), rounds=1)

    assert_equal(result, run(inner=no_evaluation(), rounds=1)[1])
    assert result.train_metrics_clientapp[1] == MetricRecord()
    assert {row["status"] for row in rows_of(strategy)} == {"ok"}
    text = "metrics that not all nodes have alike are left out: loss, mine"
    assert sum(text in record.getMessage() for record in caplog.records) == 1


@pytest.mark.slow
@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -3.0])
def test_one_loss_does_not_end_the_model_of_q_fedavg(loss: float) -> None:
    class Plain(nn.Sequential):
        """Without the counters of BatchNorm, which q-FedAvg cannot average."""

        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))

    class PlainClient(Client):
        def __init__(self, context: Context) -> None:
            super().__init__(context)
            self.model_fn = Plain

    replies = 0

    def spoil(reply: Message) -> None:
        nonlocal replies
        replies += 1
        if replies == 3:  # of the second round
            metrics(loss=loss)(reply)

    inner = QFedAvg(client_learning_rate=0.1, train_loss_key="loss")
    strategy, result = run(spoil, inner, 3, client_app(PlainClient), model=Plain)

    assert_finite(result)
    row, rounds = rows_of(strategy, node=BAD)[2], set(result.train_metrics_clientapp)
    if loss < 0:  # a number, of which q-FedAvg makes NaN: that round is lost
        assert (row["status"], rounds) == ("ok", {1, 3})
    else:
        assert (row["status"], rounds) == ("refused", {1, 2, 3})
        assert "the inner strategy needs the metric 'loss'" in row["reason"]


# --- Metadata ---


def metadata(**changes: Any) -> Spoil:
    def spoil(reply: Message) -> None:
        for key, value in changes.items():
            reply.content["autoflip"][key.replace("_", "-")] = value

    return spoil


def test_an_apps_key_in_the_metadata_is_nobodys_metric() -> None:
    strategy, result = run(metadata(loss="x", num_examples=10**9))
    _, expected = run()

    assert_equal(result, expected)
    assert result.train_metrics_clientapp == expected.train_metrics_clientapp
    assert result.evaluate_metrics_clientapp == expected.evaluate_metrics_clientapp
    assert [row["reason"] for row in rows_of(strategy, node=BAD)] == [""] * 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("autoflip-version", "1"),
        ("autoflip-plan-digest", "text"),
        ("autoflip-parameters", 7.5),
        ("autoflip-parameters", True),
        ("autoflip-examples", [1]),
        ("autoflip-seconds", "long"),
        ("autoflip-budget", b"macs:1"),
        ("autoflip-privacy", 3),
    ],
)
def test_metadata_of_other_types_are_refused(key: str, value: Any) -> None:
    strategy, _ = run(metadata(**{key: value}), rounds=1)

    assert {row["status"] for row in rows_of(strategy, node=BAD)} == {"refused"}
    assert all(f"{key} must be" in row["reason"] for row in rows_of(strategy, node=BAD))


def test_a_hundred_thousand_names_cost_the_server_little() -> None:
    many = {f"a-metric-with-a-long-name-{i}": float(i) for i in range(100_000)}
    spent: list[float] = []

    class Timed(AutoFlip):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            start = time.process_time()
            found = super().aggregate_train(server_round, replies)
            spent.append(time.process_time() - start)
            return found

    for spoil in (metrics(**many), metrics()):
        run(spoil, no_evaluation(), rounds=1, kind=Timed)

    assert spent[0] - spent[1] < 0.5  # 0.05 s on one core that is not shared


# --- What the inner strategy raises ---


class Broken(FedAvg):
    """Raises in one of its methods, in one round or always."""

    def __init__(self, method: str, rounds: range = range(1, 2)) -> None:
        super().__init__()
        whole = getattr(self, method)

        def broken(server_round: int, *args: Any) -> Any:
            if server_round in rounds:
                raise RuntimeError("out of\n\x1b[31mluck")
            return whole(server_round, *args)

        setattr(self, method, broken)


@pytest.mark.parametrize("part", ["configure", "aggregate"])
@pytest.mark.parametrize("phase", ["train", "evaluate"])
@pytest.mark.parametrize("kept", [False, True])
def test_what_a_strategy_raises_loses_that_round(
    part: str, phase: str, kept: bool, tmp_path: Any, caplog: Any
) -> None:
    options = {"checkpoint_dir": tmp_path} if kept else {}

    with caplog.at_level(logging.ERROR, "flwr"):
        _, result = run(inner=Broken(f"{part}_{phase}"), **options)

    (text,) = [record.getMessage() for record in caplog.records]
    words = f"this round is lost, the model stays: {part}_{phase} raised RuntimeError: "
    assert words in text
    assert text.strip("\t").isprintable()
    rounds = {1, 2} if phase == "evaluate" else {2}
    assert set(result.train_metrics_clientapp) == rounds


def test_a_strategy_that_always_raises_ends_in_an_error() -> None:
    with pytest.raises(AutoFlipError, match="aggregate_train raised RuntimeError"):
        run(inner=Broken("aggregate_train", range(9)))


def test_an_average_that_is_no_model_loses_that_round() -> None:
    class NotANumber(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            record, found = super().aggregate_train(server_round, replies)
            if server_round == 2 and record is not None:
                record["fc2.bias"] = Array(record["fc2.bias"].numpy() * np.nan)
            return record, found

    _, result = run(inner=NotANumber())

    assert_equal(result, run(inner=NotANumber(), rounds=1)[1])


# --- Nobody trained ---


def late(first: int, last: int = 10**9) -> Fault:
    """Let through the replies from one to another, counted from 0."""
    count = -1

    def fault(node: int, reply: Message) -> Message | None:
        nonlocal count
        count += 1
        return reply if first <= count < last else None

    return fault


def test_a_run_in_which_no_node_trained_is_an_error(tmp_path: Any) -> None:
    words = "no node's training counted in any round.*: no reply before the timeout$"

    for options in ({}, {"checkpoint_dir": tmp_path}, {"checkpoint_dir": tmp_path}):
        # The last one goes on where all rounds are done already.
        with pytest.raises(AutoFlipError, match=words):
            run(inner=no_evaluation(), fault=late(10**9), **options)


def test_one_round_in_which_somebody_trained_is_enough(tmp_path: Any) -> None:
    given: dict[str, Any] = {"fault": late(NODES), "checkpoint_dir": tmp_path}

    strategy, _ = run(inner=no_evaluation(), **given)

    statuses = [row["status"] for row in rows_of(strategy)]
    assert statuses == ["missing"] * NODES + ["ok"] * NODES


def test_nothing_valid_leaves_the_model_as_it_was() -> None:
    _, whole = run(inner=no_evaluation(), rounds=1)

    _, result = run(inner=no_evaluation(), rounds=3, fault=late(0, NODES))

    assert_equal(result, whole)


def test_a_run_that_asks_nobody_to_train_is_none() -> None:
    class Watches(FedAvg):
        def configure_train(self, *args: Any) -> list[Message]:
            return []

    _, result = run(inner=Watches())

    assert len(result.evaluate_metrics_clientapp) == 2
