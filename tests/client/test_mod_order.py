"""Flower's other client mods, before and behind ours: they do what they should."""

import logging
from typing import Any

import numpy as np
import pytest
from asked import DENSE, LAYOUT, SMALL, WEIGHTS, Asked, template
from federation import EXAMPLE, Client, TinyNet, initial, numpy_app, plain_app
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    FedAvg,
)
from grid import LocalGrid

from flwr_autoflip import AutoFlip, autoflip_mod, client_app
from flwr_autoflip.graph.pack import expand

NORM = 0.05
MODS: dict[str, Any] = {
    "fixed": fixedclipping_mod,
    "adaptive": adaptiveclipping_mod,
    "local": LocalDpMod(NORM, sensitivity=0.0, epsilon=1.0, delta=1e-3),  # no noise
}
APPS: dict[str, Any] = {
    "message": plain_app,
    "numpy": numpy_app,
    "autoflip-client": lambda mods: client_app(Client, mods=mods),
}
ORDERS = [
    *(("behind", app) for app in ("message", "numpy")),
    *(("before", app) for app in APPS),
]


def clipping(norm: float = NORM) -> RecordDict:
    """What Flower's strategies for client-side clipping send."""
    return template(clipping_norm=norm)


def build(place: str, app: str, mod: Any) -> ClientApp:
    own = [] if app == "autoflip-client" else [autoflip_mod]
    return APPS[app]([*own, mod] if place == "behind" else [mod, *own])


def length(arrays: Any) -> float:
    """L2 norm of all values that clipping changes: counters are not."""
    return float(np.sqrt(sum((a.astype(float) ** 2).sum() for a in arrays if a.ndim)))


def moved(answer: Any) -> dict[str, np.ndarray]:
    """What a node moved, as the server sees it: dense."""
    plan = answer.instructions.reply_plan
    after = expand(WEIGHTS, answer.reply.values, plan)
    before = expand(WEIGHTS, answer.instructions.start, plan)
    return {name: after[name] - before[name] for name in after}


# --- Clipping and noise ---


@pytest.mark.parametrize("kind", MODS)
@pytest.mark.parametrize(("place", "app"), ORDERS)
def test_what_the_server_receives_is_clipped(kind: str, place: str, app: str) -> None:
    asked = Asked(build(place, app, MODS[kind]))
    own = [] if app == "autoflip-client" else [autoflip_mod]

    answers = asked.ask(content=clipping())
    free = Asked(APPS[app](own)).ask(content=clipping())

    assert len(answers) == len(free) == 3
    for answer, unclipped in zip(answers, free, strict=True):
        bound = NORM * 1.001
        assert 0 < length(moved(answer).values()) <= bound
        assert length(moved(unclipped).values()) > 2 * bound
        assert kind != "adaptive" or answer.reply.metrics["norm_bit"] == 1


@pytest.mark.parametrize("kind", MODS)
@pytest.mark.parametrize("app", ["message", "numpy"])
@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_rounded_values_keep_the_bound_of_a_mod_behind(
    kind: str, app: str, dtype: str
) -> None:
    """Neither rounding nor what it left of earlier rounds goes beyond the norm."""
    clipped = []

    def spy(message: Message, context: Any, call_next: Any) -> Message:
        (before,) = message.content.array_records.values()
        before = before.to_numpy_ndarrays()
        reply = call_next(message, context)
        (after,) = reply.content.array_records.values()
        pairs = zip(after.to_numpy_ndarrays(), before, strict=True)
        clipped.append(length([new - old for new, old in pairs]))
        return reply

    asked = Asked(APPS[app]([autoflip_mod, spy, MODS[kind]]))
    received = []
    for _ in range(5):
        answers = asked.ask(plan=DENSE, dtype=dtype, content=clipping())
        received += [length(moved(answer).values()) for answer in answers]

    assert len(received) == len(clipped) == 15
    for came, meant in zip(received, clipped, strict=True):
        assert 0.98 * meant < came <= meant * (1 + 1e-5) <= NORM * 1.001


@pytest.mark.parametrize("place", ["behind", "before"])
def test_local_noise_has_its_size_on_what_travels(place: str) -> None:
    noise = LocalDpMod(1e-6, sensitivity=0.1, epsilon=10.0, delta=1e-3)
    std = 0.1 * np.sqrt(2 * np.log(1.25 / 1e-3)) / 10

    answers = Asked(build(place, "message", noise)).ask()

    kept = SMALL.dense_mask("fc1.weight")
    for update in (moved(answer)["fc1.weight"] for answer in answers):
        assert np.std(update[kept]) == pytest.approx(std, rel=0.15)
        np.testing.assert_array_equal(update[~kept], 0)


@pytest.mark.parametrize("kind", MODS)
@pytest.mark.parametrize("payload", ["deviations", "units"])
@pytest.mark.parametrize("app", APPS)
def test_a_report_that_a_mod_changed_is_refused(
    kind: str, payload: Any, app: str
) -> None:
    asked = Asked(build("before", app, MODS[kind]))

    with np.errstate(all="ignore"):  # Flower's norms, of 16 bits here
        answers = asked.ask("explore", DENSE, payload=payload, content=clipping())

    assert answers == []
    for reason in asked.reasons:  # of another length it cannot even be compared
        assert "put that mod behind ours" in reason or "broadcast" in reason


def test_a_report_of_its_own_length_that_was_changed_is_refused() -> None:
    def halve(message: Message, context: Any, call_next: Any) -> Message:
        reply = call_next(message, context)
        (record,) = reply.content.array_records.values()
        record["0"] = type(record["0"])(record["0"].numpy() / np.float16(2))
        return reply

    asked = Asked(build("before", "autoflip-client", halve), 1)

    assert asked.ask("explore", DENSE, payload="units") == []
    assert "was changed after it was made" in asked.reasons[0]


def test_a_mod_that_stumbles_over_eight_bits_is_told_its_place() -> None:
    asked = Asked(build("before", "message", fixedclipping_mod))

    assert asked.ask(dtype="int8", content=clipping()) == []
    for words in (r"mods=[autoflip_mod, ...]", "value_dtype='float32'"):
        assert all(words in reason for reason in asked.reasons)


def test_mods_of_training_alone_leave_evaluation_in_peace() -> None:
    inner, app = plain_app(), ClientApp()

    @app.train(mods=[autoflip_mod, fixedclipping_mod])
    def train(message: Message, context: Any) -> Message:
        return inner(message, context)

    @app.evaluate(mods=[autoflip_mod])
    def evaluate(message: Message, context: Any) -> Message:
        return inner(message, context)

    asked = Asked(app)

    assert len(asked.ask(content=clipping())) == 3
    assert len(asked.ask("evaluate")) == 3


@pytest.mark.parametrize("app", ["message", "numpy"])
def test_adaptive_clipping_learns_from_its_bit(app: str) -> None:
    nodes = APPS[app]([autoflip_mod, adaptiveclipping_mod])
    for norm, factor in ((100.0, np.exp(0.1)), (NORM, np.exp(-0.1))):
        inner: Any = DifferentialPrivacyClientSideAdaptiveClipping(
            FedAvg(fraction_evaluate=0.0), 0.0, 3, norm
        )
        strategy = AutoFlip(inner, TinyNet(), EXAMPLE, method="random", macs=0.5)

        result = strategy.start(LocalGrid(nodes, 3), initial(), num_rounds=3)

        # Nobody was clipped in three rounds: the norm grows by e^(.2 * .5) each time;
        # or everybody was: it shrinks as much.
        assert inner.clipping_norm == pytest.approx(norm * factor**3)
        assert isinstance(result.train_metrics_clientapp[1], MetricRecord)
        assert result.train_metrics_clientapp[1]["norm_bit"] == (norm < 1)


# --- Sizes, and errors of theirs ---


@pytest.mark.parametrize("place", ["behind", "before"])
@pytest.mark.parametrize(
    ("mod", "words"),
    [
        (message_size_mod, "message size: %i"),
        (arrays_size_mod, "Total array elements"),
    ],
)
def test_sizes_are_those_of_their_place(
    place: str, mod: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "flwr"):
        asked = Asked(build(place, "message", mod))
        assert len(asked.ask()) == 3

    sizes: list[Any] = [
        record.args[0]  # type: ignore[index]
        for record in caplog.records
        if words in str(record.msg)
    ]
    assert len(sizes) == 2 * 3  # in and out
    dense = 4 * sum(tensor.size for tensor in LAYOUT.tensors)
    if place == "behind":
        assert min(sizes) > dense
    else:
        assert max(sizes) < 4 * SMALL.num_values + 1500 < dense


def test_a_mods_own_error_passes() -> None:
    # Flower's clipping mod answers so when the strategy around the server is missing.
    asked = Asked(build("behind", "message", fixedclipping_mod))

    assert asked.ask() == []
    assert {row["status"] for row in asked.rows} == {"failed"}
    assert "requires the key 'clipping_norm'" in asked.reasons[0]
