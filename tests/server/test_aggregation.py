"""Kept values straight to the average, or dense models to whoever needs them."""

import gc
import random
import weakref
from typing import Any

import numpy as np
import pytest
from federation import EXAMPLE, Client, TinyNet, guided, initial
from flwr.app import ArrayRecord, Message
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    Strategy,
)
from grid import LocalGrid

from flwr_autoflip import AutoFlip, client_app
from flwr_autoflip.server.hosts import only_averages

NODES = 4


class Dense(FedAvg):
    """FedAvg whose aggregation is its own, so that it is given dense models."""

    seen: list[list[str]]

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        self.seen = [list(reply.content["arrays"]) for reply in replies]
        return super().aggregate_train(server_round, replies)


class Compact(FedAvg):
    """FedAvg as it is, but for a look at what it is given."""

    seen: list[list[str]]

    def _check_and_log_replies(
        self, replies: Any, is_train: bool, validate: bool = True
    ) -> tuple[list[Message], list[Message]]:
        replies = list(replies)
        if is_train:
            self.seen = [list(reply.content["arrays"]) for reply in replies]
        return super()._check_and_log_replies(replies, is_train, validate)


def final(inner: FedAvg, **options: Any) -> tuple[dict[str, np.ndarray], AutoFlip]:
    random.seed(0)
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, **guided(**options))
    result = strategy.start(
        LocalGrid(client_app(Client), NODES), initial(), num_rounds=3
    )
    return {name: a.numpy() for name, a in result.arrays.items()}, strategy


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"value_dtype": "float16"},
        {"value_dtype": "int8", "compress": True},
        {"untrained": "zero"},
        {"single_weights": "quantile:0.3"},
        {"policy": "prunefl", "threshold": "2x"},
        {"policy": "dense"},
    ],
    ids=str,
)
def test_the_short_way_gives_the_same_model(options: dict[str, Any]) -> None:
    compact, dense = Compact(fraction_evaluate=0.0), Dense(fraction_evaluate=0.0)

    short, strategy = final(compact, **options)
    long, _ = final(dense, **options)

    assert compact.seen == [["values"]] * NODES
    assert dense.seen == [[t.name for t in strategy.layout.tensors]] * NODES
    for spec in strategy.layout.tensors:
        # A mean in the order of the replies either way; float16 models are dense ones
        # in float32, so there is nothing to round twice.
        np.testing.assert_array_equal(short[spec.name], long[spec.name], spec.name)
        assert short[spec.name].dtype == np.dtype(spec.dtype)


@pytest.mark.parametrize(
    ("inner", "short"),
    [
        (FedAvg(), True),
        (FedProx(proximal_mu=0.1), True),
        (FedAvgM(server_momentum=0.9), False),
        (FedAdam(), False),
        (FedMedian(), False),
        (
            DifferentialPrivacyServerSideFixedClipping(
                FedAvg(), noise_multiplier=1, clipping_norm=1, num_sampled_clients=2
            ),
            False,
        ),
        (Dense(), False),
    ],
)
def test_who_only_averages(inner: Strategy, short: bool) -> None:
    assert only_averages(inner) == short


def test_an_aggregation_put_into_the_object_counts_as_its_own() -> None:
    inner = FedAvg()
    inner.aggregate_train = lambda server_round, replies: (ArrayRecord(), None)  # type: ignore
    assert not only_averages(inner)


def test_no_reply_is_in_memory_twice() -> None:
    came: list[weakref.ref[ArrayRecord]] = []

    class Looks(Dense):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            alive.append(sum(reference() is not None for reference in came))
            return super().aggregate_train(server_round, replies)

    def fault(node: int, reply: Message) -> Message:
        came.append(weakref.ref(reply.content["arrays"]))  # type: ignore[arg-type]
        return reply

    alive: list[int] = []
    strategy = AutoFlip(Looks(fraction_evaluate=0.0), TinyNet(), EXAMPLE, policy="l1")
    gc.collect()
    gc.disable()  # reference cycles would stay
    try:
        grid = LocalGrid(client_app(Client), NODES, fault)
        strategy.start(grid, initial(), num_rounds=1)
    finally:
        gc.enable()

    assert len(came) == NODES
    assert alive == [0]
