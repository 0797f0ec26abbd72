"""What leaves a node that wants privacy is its noised report, once, and no more."""

import random
from threading import Thread
from typing import Any

import federation
import numpy as np
import pytest
from asked import DENSE, LAYOUT, Asked
from federation import (
    Client,
    TinyNet,
    make_model,
    numpy_app,
    plain_app,
    sgd,
)
from flwr.app import Context, Message

from flwr_autoflip import autoflip_mod, client_app, wire
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.methods.guidance import deviation, report_by_unit
from flwr_autoflip.wire import privacy
from flwr_autoflip.wire.encoding import to_half
from flwr_autoflip.wire.privacy import ReportPrivacy

STD, SAYS = 0.3, "epsilon:8.0,delta:1e-05"
APPS: dict[str, Any] = {
    "autoflip-client": lambda: client_app(Client),
    "message": lambda: plain_app([autoflip_mod]),
    "numpy": lambda: numpy_app([autoflip_mod]),
}
NOISED = {"autoflip-privacy": "epsilon:8"}


@pytest.fixture(autouse=True)
def _known_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of a known size, from a seed."""
    monkeypatch.setattr(ReportPrivacy, "noise_std", lambda self: STD)
    monkeypatch.setattr(privacy, "NOISE", random.Random(5))


def explore(asked: Asked, payload: Any = "units") -> list[Any]:
    return asked.ask("explore", DENSE, payload=payload)


@pytest.mark.parametrize("kind", APPS)
def test_what_leaves_is_exactly_the_noised_report(kind: str) -> None:
    answers = explore(Asked(APPS[kind](), **NOISED))

    noise = random.Random(5)
    assert len(answers) == 3
    for node, answer in enumerate(answers):
        model = make_model()
        before = {name: array.copy() for name, array in arrays_of(model).items()}
        sgd(model.train(), node)
        after = arrays_of(model)
        names = [t.name for t in LAYOUT.tensors if t.trainable]
        moved: Any = {n: deviation(before[n], after[n]) for n in names}
        report, noised = report_by_unit(LAYOUT, moved), []
        for values in report.values():
            bounded = values.astype(float) / np.linalg.norm(values) / len(report) ** 0.5
            drawn = [noise.normalvariate(0, STD) for _ in range(values.size)]
            part = bounded + drawn
            noised.append(np.sqrt(part - part.min()))
        expected, scale = to_half(np.concatenate(noised))

        np.testing.assert_array_equal(answer.reply.sizes, expected)
        assert answer.reply.metadata["autoflip-scale"] == scale
        assert answer.reply.metadata["autoflip-privacy"] == SAYS
        assert set(answer.reply.metadata) <= {  # else nothing of data, but counts
            *("autoflip-scale", "autoflip-checksum", "autoflip-privacy"),
            *("autoflip-version", "autoflip-plan-digest", "autoflip-parameters"),
            *("autoflip-seconds", "autoflip-examples", "autoflip-eval-examples"),
            *("autoflip-macs", "autoflip-eval-macs"),
        }


def test_a_client_says_it_in_its_constructor() -> None:
    class Own(Client):
        def __init__(self, context: Context) -> None:
            super(Client, self).__init__(TinyNet, context, privacy="epsilon:2")
            self.node = int(context.node_config["partition-id"])

    for answer in explore(Asked(client_app(Own))):
        assert answer.reply.metadata[wire.keys.PRIVACY] == "epsilon:2.0,delta:1e-05"


@pytest.mark.parametrize("kind", APPS)
def test_a_report_that_says_more_is_not_given(kind: str) -> None:
    def gives(node: int, reply: Message) -> Message:
        assert reply.has_error()
        return reply

    asked = Asked(APPS[kind](), fault=gives, **NOISED)

    assert explore(asked, "deviations") == []
    assert (
        "asks for 'deviations'; take a method that asks for 'units'" in asked.reasons[0]
    )


@pytest.mark.parametrize("kind", APPS)
def test_a_second_report_is_not_given(kind: str) -> None:
    asked = Asked(APPS[kind](), **NOISED)
    explore(asked)
    for context in asked.grid.contexts.values():
        assert dict(context.state["autoflip-released"]) == {"autoflip-privacy": SAYS}

    assert explore(asked) == []
    assert all("out already, and a second one" in reason for reason in asked.reasons)
    assert len(asked.ask()) == 3  # to train is another matter


@pytest.mark.parametrize("kind", APPS)
def test_of_two_requests_at_once_one_is_answered(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, second = Asked(APPS[kind](), **NOISED), list[Any]()
    grid = asked.grid

    def asked_twice(model: Any, node: int, epochs: int = 2) -> float:
        _, message = grid.log[-1]
        twin = Thread(target=lambda: second.append(grid.answer(message)))
        if len(grid.log) > len(second):
            twin.start()
            twin.join()
        return sgd(model, node, epochs)

    monkeypatch.setattr(federation, "sgd", asked_twice)
    explore(asked)

    assert len(second) == 3
    for reply in second:
        assert "is being made for another request" in reply.error.reason


def test_a_node_that_failed_before_its_report_was_made_has_spent_nothing() -> None:
    class Fails(Client):
        def train(self, model: Any, config: Any) -> Any:
            if self.node == 1:
                raise RuntimeError("out of memory")
            return super().train(model, config)

    asked = Asked(client_app(Fails), **NOISED)
    explore(asked)

    states = [context.state for context in asked.grid.contexts.values()]
    assert ["autoflip-released" in state for state in states] == [True, False, True]


def test_a_node_config_that_cannot_be_read_is_one_line() -> None:
    asked = Asked(client_app(Client), **{"autoflip-privacy": "8"})

    assert explore(asked) == []
    assert "node 100: autoflip-privacy must be" in asked.reasons[0]


def test_training_is_not_noised() -> None:
    """What a report's noise does not protect: said in docs/howto/privacy.md."""
    both = [Asked(client_app(Client), **config).ask() for config in ({}, NOISED)]

    for one, other in zip(*both, strict=True):
        np.testing.assert_array_equal(one.reply.values, other.reply.values)
