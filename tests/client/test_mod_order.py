"""Flower's other client mods, before and behind ours: they do what they should."""

import logging
from typing import Any

import numpy as np
import pytest
from federation import EXAMPLE, Client, TinyNet, guided, initial, numpy_app, plain_app
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    FedAvg,
    Strategy,
)
from grid import LocalGrid

from flwr_autoflip import AutoFlip, AutoFlipError, autoflip_mod, client_app
from flwr_autoflip.ledger.ledger import node_rows

NODES, NORM = 3, 0.05
Rows = list[dict[str, Any]]


class Watched(FedAvg):
    """FedAvg that notes the norm of every update that reaches it."""

    def __init__(self) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.updates: list[tuple[int, dict[str, np.ndarray]]] = []
        self._sent: dict[str, np.ndarray] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Any:
        self._sent = {name: a.numpy() for name, a in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        for reply in replies:
            (record,) = reply.content.array_records.values()
            update = {
                name: a.numpy() - self._sent[name]
                for name, a in record.items()
                if a.numpy().ndim  # counters of no dimension are no floats
            }
            self.updates.append((server_round, update))
        return super().aggregate_train(server_round, replies)

    def norms(self) -> dict[int, list[float]]:
        """Norms of updates by round; round 0 explored."""
        found: dict[int, list[float]] = {}
        for server_round, update in self.updates:
            square = sum(float((u.astype(float) ** 2).sum()) for u in update.values())
            found.setdefault(server_round, []).append(np.sqrt(square))
        return found


def wrap(kind: str, inner: Strategy) -> Strategy:
    """Give the server side that a mod wants."""
    if kind == "fixed":
        return DifferentialPrivacyClientSideFixedClipping(inner, 0.0, NORM, NODES)
    if kind == "adaptive":
        return DifferentialPrivacyClientSideAdaptiveClipping(inner, 0.0, NODES, NORM)
    return inner


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


def run(app: ClientApp, inner: Strategy, rounds: int = 2, **options: Any) -> AutoFlip:
    strategy = AutoFlip(
        inner, TinyNet(), EXAMPLE, **guided(threshold="mass:0.5", **options)
    )
    strategy.start(LocalGrid(app, NODES), initial(), num_rounds=rounds)
    return strategy


# --- Clipping and noise ---


@pytest.mark.parametrize("kind", MODS)
@pytest.mark.parametrize(
    ("place", "kind_of_app"),
    [
        ("behind", "message"),
        ("behind", "numpy"),
        ("before", "message"),
        ("before", "numpy"),
        ("before", "autoflip-client"),
    ],
)
def test_what_the_server_receives_is_clipped(
    kind: str, place: str, kind_of_app: str
) -> None:
    watched, free = Watched(), Watched()
    own = [] if kind_of_app == "autoflip-client" else [autoflip_mod]
    mods = [*own, MODS[kind]] if place == "behind" else [MODS[kind], *own]
    options: dict[str, Any] = {
        "client_api": "numpy" if kind_of_app == "numpy" else "message",
        "exploration_payload": "update" if place == "behind" else "weights",
    }

    strategy = run(APPS[kind_of_app](mods), wrap(kind, watched), **options)
    run(APPS[kind_of_app](own), free, **options)

    assert {row["status"] for row in node_rows(strategy.ledger.rows)} == {"ok"}
    assert {row["phase"] for row in node_rows(strategy.ledger.rows)} == {
        "explore",
        "train",
    }
    # Adaptive: all are clipped, so the bound grows; it is not above e^(2 * .1) of NORM.
    bound = NORM * (np.exp(0.2) if kind == "adaptive" else 1) * 1.001
    norms, unclipped = watched.norms(), free.norms()
    assert [len(norms[r]) for r in (0, 1, 2)] == [NODES] * 3
    for server_round in (0, 1, 2):
        assert 0 < max(norms[server_round]) <= bound
        assert min(unclipped[server_round]) > 2 * bound


@pytest.mark.parametrize("app", ["message", "numpy"])
def test_adaptive_clipping_learns_from_its_bit(app: str) -> None:
    watched = Watched()
    inner = DifferentialPrivacyClientSideAdaptiveClipping(watched, 0.0, NODES, 100.0)
    mods = [autoflip_mod, adaptiveclipping_mod]

    run(APPS[app](mods), inner, client_api=app)

    # Nobody was clipped in three rounds: the norm grows by e^(.2 * .5) each time...
    assert inner.clipping_norm == pytest.approx(100 * np.exp(0.1) ** 3)
    inner = DifferentialPrivacyClientSideAdaptiveClipping(watched, 0.0, NODES, NORM)
    run(APPS[app](mods), inner, client_api=app)
    # ... and everybody was: it shrinks as much.
    assert inner.clipping_norm == pytest.approx(NORM * np.exp(-0.1) ** 3)


@pytest.mark.parametrize("place", ["behind", "before"])
def test_local_noise_has_its_size_on_what_travels(place: str) -> None:
    noise = LocalDpMod(1e-6, sensitivity=0.1, epsilon=10.0, delta=1e-3)
    std = 0.1 * np.sqrt(2 * np.log(1.25 / 1e-3)) / 10
    mods = [autoflip_mod, noise] if place == "behind" else [noise, autoflip_mod]
    payload: Any = "update" if place == "behind" else "weights"
    watched = Watched()

    strategy = run(plain_app(mods), watched, rounds=1, exploration_payload=payload)

    plan = strategy.deployable_plan()
    explored = [u["fc1.weight"] for r, u in watched.updates if r == 0]
    assert np.std(explored) == pytest.approx(std, rel=0.1)
    kept = plan.dense_mask("fc1.weight")
    for update in (u["fc1.weight"] for r, u in watched.updates if r == 1):
        assert np.std(update[kept]) == pytest.approx(std, rel=0.3)
        np.testing.assert_array_equal(update[~kept], 0)


@pytest.mark.parametrize("kind", MODS)
@pytest.mark.parametrize("value_dtype", ["float32", "float16"])
@pytest.mark.parametrize("app", ["message", "numpy", "autoflip-client"])
def test_a_mod_that_changes_reports_is_told_its_place(
    kind: str, value_dtype: str, app: str
) -> None:
    mods = [MODS[kind]] + [autoflip_mod] * (app != "autoflip-client")
    api: Any = "numpy" if app == "numpy" else "message"

    # In 16 bits the request is bytes, which the mod cannot even compare with a report.
    words = "was changed" if value_dtype == "float32" else "could not be broadcast"
    with (
        np.errstate(over="ignore"),  # Flower's norms, of 16 bits here
        pytest.raises(AutoFlipError, match=rf"{words} .* mods=\[autoflip_mod, ..."),
    ):
        run(
            APPS[app](mods),
            wrap(kind, Watched()),
            value_dtype=value_dtype,
            client_api=api,
        )


@pytest.mark.parametrize("payload", ["units", "deviation"])
def test_a_mod_that_stumbles_over_reports_is_told_its_place(payload: Any) -> None:
    with pytest.raises(AutoFlipError, match=r"broadcast.* mods=\[autoflip_mod, ..."):
        run(
            plain_app([fixedclipping_mod, autoflip_mod]),
            wrap("fixed", Watched()),
            exploration_payload=payload,
            warm_start=False,
        )


def test_without_exploring_either_order_trains() -> None:
    for mods in ([fixedclipping_mod, autoflip_mod], [autoflip_mod, fixedclipping_mod]):
        watched = Watched()

        strategy = AutoFlip(
            wrap("fixed", watched),
            TinyNet(),
            EXAMPLE,
            policy="random",
            threshold="2x",
            value_dtype="float32",
        )
        strategy.start(LocalGrid(plain_app(mods), NODES), initial(), num_rounds=1)

        assert {row["status"] for row in node_rows(strategy.ledger.rows)} == {"ok"}
        assert max(watched.norms()[1]) <= NORM * 1.001


def test_a_mod_that_stumbles_over_eight_bits_is_told_its_place() -> None:
    strategy = AutoFlip(wrap("fixed", Watched()), TinyNet(), EXAMPLE)
    app = plain_app([fixedclipping_mod, autoflip_mod])

    with pytest.raises(AutoFlipError, match="put it behind ours"):
        strategy.start(LocalGrid(app, NODES), initial(), num_rounds=1)

    rows = node_rows(strategy.ledger.rows)
    assert {row["status"] for row in rows} == {"failed"}
    for words in (r"mods=[autoflip_mod, ...]", "value_dtype='float32'"):
        assert all(words in row["reason"] for row in rows)


def test_the_default_trains_behind_clipping() -> None:
    strategy = AutoFlip(wrap("fixed", Watched()), TinyNet(), EXAMPLE)
    app = plain_app([autoflip_mod, fixedclipping_mod])

    strategy.start(LocalGrid(app, NODES), initial(), num_rounds=2)

    assert {row["status"] for row in node_rows(strategy.ledger.rows)} == {"ok"}


def length(arrays: Any) -> float:
    """L2 norm of all values that clipping changes."""
    return float(np.sqrt(sum((a.astype(float) ** 2).sum() for a in arrays if a.ndim)))


@pytest.mark.parametrize("kind", MODS)
@pytest.mark.parametrize("app", ["message", "numpy"])
@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_rounded_values_keep_the_bound_of_a_mod_behind(
    kind: str, app: str, dtype: str
) -> None:
    """Neither rounding nor what it left of earlier rounds goes beyond the norm."""
    watched, clipped = Watched(), []

    def spy(message: Message, context: Any, call_next: Any) -> Message:
        (before,) = message.content.array_records.values()
        before = before.to_numpy_ndarrays()
        reply = call_next(message, context)
        (after,) = reply.content.array_records.values()
        pairs = zip(after.to_numpy_ndarrays(), before, strict=True)
        clipped.append(length([new - old for new, old in pairs]))
        return reply

    strategy = AutoFlip(
        wrap(kind, watched),
        TinyNet(),
        EXAMPLE,
        value_dtype=dtype,
        policy="dense",  # so that all of the clipped update travels
        client_api="numpy" if app == "numpy" else "message",
    )
    grid = LocalGrid(APPS[app]([autoflip_mod, spy, MODS[kind]]), NODES)

    strategy.start(grid, initial(), num_rounds=5)

    received = [length(update.values()) for _, update in watched.updates]
    assert len(received) == len(clipped) == 5 * NODES
    for came, meant in zip(received, clipped, strict=True):
        assert 0.98 * meant < came <= meant * (1 + 1e-5) <= NORM * 1.001


def test_mods_of_training_alone_leave_evaluation_in_peace() -> None:
    inner, app = plain_app(), ClientApp()

    @app.train(mods=[autoflip_mod, fixedclipping_mod])
    def train(message: Message, context: Any) -> Message:
        return inner(message, context)

    @app.evaluate(mods=[autoflip_mod])
    def evaluate(message: Message, context: Any) -> Message:
        return inner(message, context)

    dp = wrap("fixed", FedAvg())

    strategy = run(app, dp, rounds=1)

    assert {row["status"] for row in node_rows(strategy.ledger.rows)} == {"ok"}
    assert [row["phase"] for row in node_rows(strategy.ledger.rows)].count(
        "evaluate"
    ) == NODES


# --- Sizes ---


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
    mods = [autoflip_mod, mod] if place == "behind" else [mod, autoflip_mod]

    with caplog.at_level(logging.INFO, "flwr"):
        strategy = run(plain_app(mods), FedAvg(fraction_evaluate=0.0), rounds=1)

    assert {row["status"] for row in node_rows(strategy.ledger.rows)} == {"ok"}
    sizes = [
        int(record.args[0])  # type: ignore[index, arg-type]
        for record in caplog.records
        if words in str(record.msg)
    ]
    assert len(sizes) == 2 * 2 * NODES  # in and out, exploring and training
    dense = 4 * sum(tensor.size for tensor in strategy.layout.tensors)
    trained = sizes[2 * NODES :]
    if place == "behind":
        assert min(trained) > dense
    else:
        assert max(trained) < 0.5 * dense + 600


def test_a_mods_own_error_passes() -> None:
    # Flower's clipping mod answers so when the strategy around the server is missing.
    strategy = AutoFlip(
        FedAvg(fraction_evaluate=0.0),
        TinyNet(),
        EXAMPLE,
        policy="random",
        threshold="2x",
    )
    app = plain_app([autoflip_mod, fixedclipping_mod])

    with pytest.raises(AutoFlipError, match="requires the key 'clipping_norm'"):
        strategy.start(LocalGrid(app, NODES), initial(), num_rounds=1)

    rows: Rows = node_rows(strategy.ledger.rows)
    assert {row["status"] for row in rows} == {"failed"}
    assert "requires the key 'clipping_norm'" in rows[0]["reason"]


def test_metrics_of_the_mods_reach_the_average() -> None:
    inner = wrap("adaptive", FedAvg(fraction_evaluate=0.0))
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, **guided(threshold="mass:0.5"))
    app = plain_app([autoflip_mod, adaptiveclipping_mod])

    result = strategy.start(LocalGrid(app, NODES), initial(), num_rounds=1)

    assert isinstance(result.train_metrics_clientapp[1], MetricRecord)
    assert result.train_metrics_clientapp[1]["norm_bit"] == 1
