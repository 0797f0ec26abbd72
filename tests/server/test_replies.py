"""What one node says, or one strategy raises, costs at most a round, never the run."""

import logging
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import realistic
from federation import EXAMPLE, Client, TinyNet, guided, initial, numpy_app
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
from grid import LocalGrid
from torch import nn

from flwr_autoflip import AutoFlip, AutoFlipError, autoflip_mod, client_app
from flwr_autoflip.ledger.ledger import node_rows

NODES, BAD = 5, 101
Spoil = Callable[[Message], None]


def run(
    spoil: Spoil = lambda reply: None,
    inner: Strategy | None = None,
    rounds: int = 2,
    app: ClientApp | None = None,
    **options: Any,
) -> tuple[AutoFlip, Result]:
    """Run a federation in which one node's replies are spoilt."""
    random.seed(0)
    options = guided(**{"policy": "random", "threshold": "2x", **options})
    inner = FedAvg(min_available_nodes=NODES) if inner is None else inner
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, **options)

    def fault(node: int, reply: Message) -> Message | None:
        if node == BAD:
            spoil(reply)
        return reply

    grid = LocalGrid(app or client_app(Client), NODES, fault)
    return strategy, strategy.start(grid, initial(), num_rounds=rounds)


def arrays(result: Result) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in result.arrays.items()}


def assert_equal(found: Result, expected: Result) -> None:
    for name, array in arrays(expected).items():
        np.testing.assert_array_equal(arrays(found)[name], array, name)


def rows(strategy: AutoFlip, node: int = BAD) -> list[dict[str, Any]]:
    return [row for row in node_rows(strategy.ledger.rows) if row["node"] == node]


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
INNER = {
    "FedAvg": FedAvg,
    "FedAdam": FedAdam,
    "FedAvgM": lambda: FedAvgM(server_momentum=0.5),
    "FedMedian": FedMedian,
    "FedTrimmedAvg": FedTrimmedAvg,
    "Krum": lambda: Krum(num_malicious_nodes=1),
    "DP": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), noise_multiplier=0, clipping_norm=5, num_sampled_clients=NODES
    ),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_metrics_that_nobody_can_average_are_left_out_and_training_counts(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, reason = UNUSABLE[kind]

    with caplog.at_level(logging.WARNING, "flwr"):
        strategy, result = run(spoil)

    assert_equal(result, run()[1])
    assert [row["status"] for row in rows(strategy)] == ["ok"] * 4
    assert all(reason in row["reason"] for row in rows(strategy))
    assert rows(strategy, BAD + 1)[0]["reason"] == ""
    said = [record.getMessage() for record in caplog.records]
    own = [text for text in said if f"reply of node {BAD}: metrics left out" in text]
    assert len(own) == 4
    assert all(text.strip("\t").isprintable() for text in own)


@pytest.mark.parametrize("name", INNER)
def test_no_metric_ends_a_run(name: str, tmp_path: Any) -> None:
    strategy, result = run(metrics(loss=[]), INNER[name](), checkpoint_dir=tmp_path)

    assert len(result.train_metrics_clientapp) == 2
    assert all(np.isfinite(array).all() for array in arrays(result).values())
    assert {row["status"] for row in rows(strategy)} == {"ok"}


def test_a_numpy_clients_metrics_are_checked_likewise() -> None:
    def spoil(reply: Message) -> None:
        for key in ("fitres.metrics", "evaluateres.metrics"):
            if key in reply.content:
                reply.content[key]["loss"] = float("nan")

    app = numpy_app([autoflip_mod])
    strategy, result = run(spoil, app=app, client_api="numpy")

    assert_equal(result, run(app=app, client_api="numpy")[1])
    assert "'loss' is not finite" in rows(strategy)[0]["reason"]


def test_nodes_whose_metrics_differ_keep_their_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def spoil(reply: Message) -> None:
        record = reply.content["metrics"]
        record["mine"] = 1.0
        record["loss"] = [0.5, 0.5]  # a list here, a number there

    with caplog.at_level(logging.WARNING, "flwr"):
        strategy, result = run(spoil, FedAvg(fraction_evaluate=0.0), rounds=1)

    assert_equal(result, run(inner=FedAvg(fraction_evaluate=0.0), rounds=1)[1])
    assert result.train_metrics_clientapp[1] == MetricRecord()
    assert {row["status"] for row in node_rows(strategy.ledger.rows)} == {"ok"}
    text = "metrics that not all nodes have alike are left out: loss, mine"
    assert sum(text in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("name", ["signals"])
def test_unequal_nodes_with_unequal_metrics_all_count(name: str) -> None:
    strategy, _ = realistic.run(name, rounds=2)

    trained = [r for r in strategy.ledger.rows if r["phase"] == "train"]
    empty = 100 + realistic.EMPTY
    assert {r["status"] for r in trained if r["node"] != empty} == {"ok"}


# --- Receipts ---


def receipt(key: str, value: Any) -> Spoil:
    def spoil(reply: Message) -> None:
        reply.content["autoflip"][key] = value

    return spoil


def test_an_apps_key_in_the_receipt_is_nobodys_metric() -> None:
    def spoil(reply: Message) -> None:
        receipt("loss", "x")(reply)
        receipt("num-examples", 10**9)(reply)

    strategy, result = run(spoil)
    plain, expected = run()

    assert_equal(result, expected)
    assert result.train_metrics_clientapp == expected.train_metrics_clientapp
    assert result.evaluate_metrics_clientapp == expected.evaluate_metrics_clientapp
    assert [row["reason"] for row in rows(strategy)] == [""] * 4
    assert len(rows(plain)) == 4


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
def test_a_receipt_of_other_types_is_refused(key: str, value: Any) -> None:
    strategy, _ = run(receipt(key, value), rounds=1)

    assert {row["status"] for row in rows(strategy)} == {"refused"}
    assert all(f"{key} must be" in row["reason"] for row in rows(strategy))


def test_a_hundred_thousand_names_cost_the_server_little() -> None:
    many = {f"a-metric-with-a-long-name-{i}": float(i) for i in range(100_000)}
    spent: list[float] = []

    def hostile(node: int, reply: Message) -> Message:
        if node == BAD:
            metrics(**many)(reply)
        return reply

    class Timed(AutoFlip):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            start = time.process_time()
            found = super().aggregate_train(server_round, replies)
            spent.append(time.process_time() - start)
            return found

    inner = FedAvg(fraction_evaluate=0.0)
    for fault in (hostile, None):
        strategy = Timed(inner, TinyNet(), EXAMPLE, policy="random", threshold="2x")
        grid = LocalGrid(client_app(Client), NODES, fault)
        strategy.start(grid, initial(), num_rounds=1)

    with_names, without = spent
    print(f"{with_names - without:.3f} s")  # 0.05 on one core that is not shared
    assert with_names - without < 0.5


# --- What the inner strategy raises ---


class Broken(FedAvg):
    """Raises in one of its methods, in one round."""

    def __init__(self, method: str, wrong_round: int = 1, **options: Any) -> None:
        super().__init__(**options)
        whole = getattr(self, method)

        def broken(server_round: int, *args: Any) -> Any:
            if server_round == wrong_round:
                raise RuntimeError("out of\n\x1b[31mluck")
            return whole(server_round, *args)

        setattr(self, method, broken)


METHODS = [
    f"{part}_{phase}"
    for part in ("configure", "aggregate")
    for phase in ("train", "evaluate")
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kept", [False, True])
def test_what_a_strategy_raises_loses_that_round(
    method: str, kept: bool, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"checkpoint_dir": tmp_path} if kept else {}

    with caplog.at_level(logging.ERROR, "flwr"):
        _, result = run(inner=Broken(method), **options)

    (record,) = caplog.records
    text = f"this round is lost, the model stays: {method} raised RuntimeError: out of"
    assert text in record.getMessage()
    assert record.getMessage().strip("\t").isprintable()
    rounds = {1, 2} if method.endswith("evaluate") else {2}
    assert set(result.train_metrics_clientapp) == rounds


def test_a_strategy_that_always_raises_ends_in_an_error() -> None:
    class Always(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            raise RuntimeError("no luck")

    with pytest.raises(AutoFlipError, match="aggregate_train raised RuntimeError"):
        run(inner=Always())


def test_an_average_that_is_no_model_loses_that_round() -> None:
    class NotANumber(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            record, found = super().aggregate_train(server_round, replies)
            if server_round == 2 and record is not None:
                record["fc2.bias"] = Array(record["fc2.bias"].numpy() * np.nan)
            return record, found

    _, result = run(inner=NotANumber())

    assert_equal(result, run(inner=NotANumber(), rounds=1)[1])


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

    inner = QFedAvg(client_learning_rate=0.1, train_loss_key="loss")
    options = guided(policy="random", threshold="2x")
    strategy = AutoFlip(inner, Plain(), EXAMPLE, **options)
    count = 0

    def fault(node: int, reply: Message) -> Message:
        nonlocal count
        count += node == BAD
        if node == BAD and count == 3:  # of the second round
            metrics(loss=loss)(reply)
        return reply

    grid = LocalGrid(client_app(PlainClient), NODES, fault)
    result = strategy.start(grid, ArrayRecord(Plain().state_dict()), num_rounds=3)

    assert all(np.isfinite(array).all() for array in arrays(result).values())
    row = rows(strategy)[2]
    if loss < 0:  # a number, of which q-FedAvg makes NaN: that round is lost
        assert row["status"] == "ok"
        assert set(result.train_metrics_clientapp) == {1, 3}
    else:
        assert row["status"] == "refused"
        assert "the inner strategy needs the metric 'loss'" in row["reason"]
        assert set(result.train_metrics_clientapp) == {1, 2, 3}


# --- Nobody trained ---


def lose_all(node: int, reply: Message) -> Message | None:
    return None


def start(fault: Any, rounds: int = 2, **options: Any) -> AutoFlip:
    inner = FedAvg(fraction_evaluate=0.0)
    options = guided(policy="random", threshold="2x", **options)
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, **options)
    grid = LocalGrid(client_app(Client), NODES, fault)
    strategy.start(grid, initial(), num_rounds=rounds)
    return strategy


def test_a_run_in_which_no_node_trained_is_an_error(tmp_path: Any) -> None:
    words = "no node's training counted in any round.*: no reply before the timeout$"

    with pytest.raises(AutoFlipError, match=words):
        start(lose_all)
    for _ in range(2):  # and stays one, where all rounds are done already
        with pytest.raises(AutoFlipError, match=words):
            start(lose_all, checkpoint_dir=tmp_path)


def test_one_round_in_which_somebody_trained_is_enough(tmp_path: Any) -> None:
    count = 0

    def late(node: int, reply: Message) -> Message | None:
        nonlocal count
        count += 1
        return reply if count > NODES else None

    strategy = start(late, checkpoint_dir=tmp_path)

    statuses = [row["status"] for row in node_rows(strategy.ledger.rows)]
    assert statuses == ["missing"] * NODES + ["ok"] * NODES


def test_nothing_valid_leaves_the_model_as_it_was() -> None:
    _, whole = run(rounds=1)
    strategy = AutoFlip(
        FedAvg(fraction_evaluate=0.0),
        TinyNet(),
        EXAMPLE,
        **guided(policy="random", threshold="2x"),
    )
    count = 0

    def early(node: int, reply: Message) -> Message | None:
        nonlocal count
        count += 1
        return reply if count <= NODES else None

    random.seed(0)
    grid = LocalGrid(client_app(Client), NODES, early)
    result = strategy.start(grid, initial(), num_rounds=3)

    assert_equal(result, whole)


def test_a_run_that_asks_nobody_to_train_is_none() -> None:
    class Watches(FedAvg):
        def configure_train(self, *args: Any) -> list[Message]:
            return []

    _, result = run(inner=Watches())

    assert len(result.evaluate_metrics_clientapp) == 2
