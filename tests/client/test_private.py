"""What leaves a node that wants privacy is its noised report, once, and no more."""

import logging
import random
from threading import Thread
from typing import Any

import federation
import numpy as np
import pytest
from federation import (
    EXAMPLE,
    Client,
    TinyNet,
    guided,
    initial,
    make_model,
    numpy_app,
    plain_app,
    sgd,
)
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from grid import LocalGrid

from examples.inprocess import InProcessGrid
from flwr_autoflip import (
    AutoFlip,
    AutoFlipError,
    AutoFlipWarning,
    autoflip_mod,
    client_app,
)
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.methods.guidance import deviation, report_by_unit
from flwr_autoflip.wire import privacy
from flwr_autoflip.wire.half import to_half
from flwr_autoflip.wire.privacy import ReportPrivacy

NODES, STD = 3, 0.3
BY_UNIT: dict[str, Any] = {"exploration_payload": "units", "warm_start": False}


@pytest.fixture(autouse=True)
def _known_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of a known size, from a seed."""
    monkeypatch.setattr(ReportPrivacy, "noise_std", lambda self: STD)
    monkeypatch.setattr(privacy, "NOISE", random.Random(5))


class Private(Client):
    """Wants noise on its report."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.privacy = ReportPrivacy(8.0)


def grid_of(app: ClientApp, config: str = "", fault: Any = None) -> LocalGrid:
    grid = LocalGrid(app, NODES, fault)
    for context in grid.contexts.values():
        if config:
            context.node_config["autoflip-privacy"] = config
    return grid


def start(grid: InProcessGrid, rounds: int = 1, **options: Any) -> AutoFlip:
    inner = FedAvg(fraction_evaluate=0.0)
    options = guided(**{"threshold": "mass:0.5", **BY_UNIT, **options})
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, **options)
    strategy.start(grid, initial(), num_rounds=rounds)
    return strategy


class Captured:
    """Every reply of a node to an exploration, as it left."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, Any]] = []

    def __call__(self, node: int, reply: Any) -> Any:
        if not reply.has_error():
            self.replies.append((node, reply.content))
        return reply


APPS: dict[str, Any] = {
    "autoflip-client": lambda: client_app(Client),
    "message": lambda: plain_app([autoflip_mod]),
    "numpy": lambda: numpy_app([autoflip_mod]),
}


@pytest.mark.parametrize("kind", APPS)
@pytest.mark.parametrize("payload", ["units", "deviation"])
def test_what_leaves_is_exactly_the_noised_report(kind: str, payload: Any) -> None:
    seen = Captured()
    api: Any = "numpy" if kind == "numpy" else "message"

    strategy = start(
        grid_of(APPS[kind](), "epsilon:8", seen),
        rounds=0,
        exploration_payload=payload,
        client_api=api,
    )

    noise = random.Random(5)
    assert len(seen.replies) == NODES
    for node, content in seen.replies:
        model = make_model()
        before = arrays_of(model)
        before = {name: array.copy() for name, array in before.items()}
        sgd(model.train(), node - 100)
        after = arrays_of(model)
        names = [t.name for t in strategy.layout.tensors if t.trainable]
        report: Any = {n: deviation(before[n], after[n]) for n in names}
        if payload == "units":
            report = report_by_unit(strategy.layout, report)
        noised = []
        for values in report.values():
            bounded = values.astype(float) / np.linalg.norm(values) / len(report) ** 0.5
            drawn = [noise.normalvariate(0, STD) for _ in range(values.size)]
            part = bounded.ravel() + drawn
            noised.append(np.sqrt(part - part.min()))
        expected, scale = to_half(np.concatenate(noised))

        (arrays,) = content.array_records.values()
        (sent,) = (array.numpy() for array in arrays.values())
        np.testing.assert_array_equal(sent, expected)
        receipt = {}
        for record in content.config_records.values():
            receipt |= {k: v for k, v in record.items() if k.startswith("autoflip")}
        assert receipt["autoflip-scale"] == scale
        assert receipt["autoflip-privacy"] == "epsilon:8.0,delta:1e-05"
        assert set(receipt) == {  # nothing else that depends on data, but counts
            *("autoflip-scale", "autoflip-checksum", "autoflip-privacy"),
            *("autoflip-version", "autoflip-plan-digest", "autoflip-parameters"),
            *("autoflip-seconds",),
            *(
                (
                    *("autoflip-examples", "autoflip-eval-examples"),
                    *("autoflip-macs", "autoflip-eval-macs"),
                )
                if kind == "autoflip-client"
                else ()
            ),
        }


def test_the_server_says_what_nodes_say(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flwr"):
        strategy = start(grid_of(client_app(Private)))

    assert (
        "3 of 3 reports were noised by their nodes, who say: epsilon:8.0" in caplog.text
    )
    assert {row["status"] for row in node_rows(strategy.ledger.rows)} == {"ok"}
    assert strategy.deployable_plan().num_parameters < strategy.layout.num_parameters


def test_a_client_says_it_in_its_constructor() -> None:
    class Own(Client):
        def __init__(self, context: Context) -> None:
            super(Client, self).__init__(TinyNet, context, privacy="epsilon:2")
            self.node = int(context.node_config["partition-id"])

    seen = Captured()
    start(grid_of(client_app(Own), fault=seen), rounds=0)

    says = [content["autoflip"]["autoflip-privacy"] for _, content in seen.replies]
    assert says == ["epsilon:2.0,delta:1e-05"] * NODES


def test_nodes_with_and_without_noise_explore_together() -> None:
    class Mixed(Client):
        def __init__(self, context: Context) -> None:
            super().__init__(context)
            self.privacy = ReportPrivacy(8.0) if self.node else None

    strategy = start(grid_of(client_app(Mixed)))

    assert sorted(strategy.reports) == [100, 101, 102]


@pytest.mark.parametrize("payload", ["update", "weights"])
@pytest.mark.parametrize("kind", APPS)
def test_a_report_that_says_more_is_not_given(kind: str, payload: Any) -> None:
    seen = Captured()
    api: Any = "numpy" if kind == "numpy" else "message"

    with pytest.raises(
        AutoFlipError, match=r"reports are noised .*'units' and warm_st"
    ):
        start(
            grid_of(APPS[kind](), "epsilon:8", seen),
            exploration_payload=payload,
            client_api=api,
        )

    assert seen.replies == []


@pytest.mark.parametrize("kind", APPS)
def test_a_second_report_is_not_given(kind: str) -> None:
    api: Any = "numpy" if kind == "numpy" else "message"
    grid = grid_of(APPS[kind](), "epsilon:8")
    start(grid, client_api=api)
    spent = [
        dict(context.state["autoflip-released"]) for context in grid.contexts.values()
    ]

    with pytest.raises(AutoFlipError, match="out already, and a second one"):
        start(grid, client_api=api)

    assert spent == [{"autoflip-privacy": "epsilon:8.0,delta:1e-05"}] * NODES


@pytest.mark.parametrize("kind", APPS)
def test_of_two_requests_at_once_one_is_answered(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api: Any = "numpy" if kind == "numpy" else "message"
    grid, second = grid_of(APPS[kind](), "epsilon:8"), []

    def asked_twice(model: Any, node: int, epochs: int = 2) -> float:
        _, message = grid.log[-1]
        twin = Thread(target=lambda: second.append(grid.answer(message)))
        if len(grid.log) > len(second):
            twin.start()
            twin.join()
        return sgd(model, node, epochs)

    monkeypatch.setattr(federation, "sgd", asked_twice)
    start(grid, rounds=0, client_api=api)

    assert len(second) == NODES
    for reply in second:
        assert "is being made for another request" in reply.error.reason


def test_a_node_that_failed_before_its_report_was_made_has_spent_nothing() -> None:
    class Fails(Private):
        fails = True

        def train(self, model: Any, config: Any) -> Any:
            if self.fails and self.node == 1:
                raise RuntimeError("out of memory")
            return super().train(model, config)

    grid = grid_of(client_app(Fails))
    start(grid, rounds=0)

    states = [context.state for context in grid.contexts.values()]
    assert ["autoflip-released" in state for state in states] == [True, False, True]


def test_reports_at_their_own_scale_take_no_noise() -> None:
    with pytest.raises(AutoFlipError, match=r"noised ones have no scale of their own"):
        start(grid_of(client_app(Private)), client_scale="raw")


def test_what_a_node_says_is_not_taken_unread() -> None:
    def fault(node: int, reply: Any) -> Any:
        if node == 101 and "autoflip-privacy" in reply.content["autoflip"]:
            reply.content["autoflip"]["autoflip-privacy"] = "epsilon:0\nall is well"
        return reply

    strategy = start(grid_of(client_app(Private), fault=fault))

    rows = [row for row in node_rows(strategy.ledger.rows) if row["node"] == 101]
    assert rows[0]["status"] == "refused"
    assert "autoflip-privacy must be" in rows[0]["reason"]


def test_saying_so_is_no_way_around_the_limit_of_a_warm_start() -> None:
    def fault(node: int, reply: Any) -> Any:
        if node == 101 and "autoflip-scale" in reply.content["autoflip"]:
            reply.content["autoflip"]["autoflip-privacy"] = "epsilon:1"
        return reply

    strategy = start(
        grid_of(client_app(Client), fault=fault),
        exploration_payload="update",
        warm_start=True,
    )

    rows = [row for row in node_rows(strategy.ledger.rows) if row["node"] == 101]
    assert "'update' cannot be noised as this one says" in rows[0]["reason"]


def test_a_node_config_that_cannot_be_read_is_one_line() -> None:
    with pytest.raises(AutoFlipError, match=r"node 100: autoflip-privacy must be"):
        start(grid_of(client_app(Client), "8"))


def test_training_is_not_noised() -> None:
    """What a report's noise does not protect: said in docs/howto/privacy.md."""
    sent = []
    for client in (Client, Private):
        seen = Captured()
        with pytest.warns(AutoFlipWarning, match="prunes nothing"):
            start(grid_of(client_app(client), fault=seen), threshold="quantile:0.0")
        trained = seen.replies[NODES:]
        sent.append({node: c["arrays"]["values"].numpy() for node, c in trained})

    assert len(sent[0]) == len(sent[1]) == NODES
    for node, values in sent[0].items():
        np.testing.assert_array_equal(values, sent[1][node])
