"""Nodes unlike each other, and what one of them may do to weights and buffers."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import realistic
import torch
import torch.nn.functional as F
from federation import EXAMPLE, Client, TinyNet, guided, initial, node_data
from flwr.app import Array
from flwr.serverapp.strategy import FedAvg, FedAvgM, Result, Strategy
from grid import LocalGrid
from torch import nn

from examples.benchmarks import skew
from flwr_autoflip import AutoFlip, client_app
from flwr_autoflip.ledger.ledger import node_rows

NODES, BAD = 5, 1
Change = Callable[[nn.Module], None]


class Node(Client):
    """An epoch of SGD in training mode; afterwards one node changes its model."""

    sizes = (12,) * NODES
    frozen = False
    lr = 0.05

    @staticmethod
    def change(model: nn.Module) -> None:
        """Be honest."""

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        images, labels = node_data(self.node, self.sizes[self.node])
        if self.frozen:
            model.norm.eval()  # type: ignore[union-attr]
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9)
        for x, y in zip(images.split(12), labels.split(12), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        if self.node == BAD:
            with torch.no_grad():
                self.change(model)
        return len(images), {}


def run(
    rounds: int = 2, inner: Strategy | None = None, dtype: str = "float32", **kind: Any
) -> tuple[AutoFlip, Result]:
    random.seed(0)
    if change := kind.get("change"):
        kind["change"] = staticmethod(change)
    app = client_app(type("Own", (Node,), kind))
    inner = FedAvg(fraction_evaluate=0.0) if inner is None else inner
    options = guided(policy="random", threshold="2x", value_dtype=dtype)
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, **options)
    return strategy, strategy.start(LocalGrid(app, NODES), initial(), num_rounds=rounds)


def statuses(strategy: AutoFlip) -> set[str]:
    return {row["status"] for row in node_rows(strategy.ledger.rows)}


def refused(strategy: AutoFlip) -> dict[int, str]:
    rows = node_rows(strategy.ledger.rows)
    return {r["node"] - 100: r["reason"] for r in rows if r["status"] != "ok"}


# --- Honest nodes ---


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("largest", [1300, 12_000])
def test_no_honest_node_is_refused_for_its_size(largest: int, dtype: str) -> None:
    rounds = 6
    strategy, _ = run(rounds, dtype=dtype, sizes=(largest, 12, 12, 12, 12))

    assert statuses(strategy) == {"ok"}
    assert len(node_rows(strategy.ledger.rows)) == rounds * NODES


@pytest.mark.parametrize("name", ["pictures", "pretrained", "signals"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_unequal_nodes_all_count(name: str, dtype: str) -> None:
    strategy, _ = realistic.run(name, rounds=6, value_dtype=dtype)

    trained = [r for r in strategy.ledger.rows if r["phase"] == "train"]
    empty = 100 + realistic.EMPTY
    assert {r["status"] for r in trained if r["node"] != empty} == {"ok"}


@pytest.mark.parametrize("dtype", skew.DTYPES)
@pytest.mark.parametrize("bad", [False, True])
def test_a_thousandfold_skew_refuses_the_bad_and_nobody_else(
    dtype: str, bad: bool
) -> None:
    row = skew.run(nodes=20, rounds=3, value_dtype=dtype, bad=bad)

    assert row["honest refused"] == 0, row["reasons"]
    assert row["bad refused"] == row["bad"] == (6 if bad else 0)


# --- One node ---


def times(factor: float) -> Change:
    def change(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter *= factor

    return change


def fill(name: str, value: float) -> Change:
    def change(model: nn.Module) -> None:
        model.state_dict()[name].fill_(value)

    return change


WRONG: dict[str, tuple[Change, str]] = {
    "minus the model": (times(-9.9), "its parameters moved by"),
    "ten times": (times(10), "its parameters moved by"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_one_node_moves_too_far_is_refused_by_name(kind: str, dtype: str) -> None:
    change, reason = WRONG[kind]

    strategy, result = run(3, dtype=dtype, change=change)

    assert list(refused(strategy)) == [BAD]
    assert reason in refused(strategy)[BAD]
    model = strategy.deployable_model(result.arrays)
    assert model(node_data(0)[0]).isfinite().all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("norm.running_var", 1e6),
        ("norm.running_var", -1e6),
        ("norm.running_mean", 50.0),
        ("norm.num_batches_tracked", -(10**6)),
        ("norm.num_batches_tracked", 10**6),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("inner", [FedAvg, FedAvgM])
def test_a_buffer_that_went_too_far_is_taken_back_and_training_counts(
    name: str, value: float, dtype: str, inner: Any
) -> None:
    within = run(2, dtype=dtype)[1].arrays[name].numpy()

    strategy, result = run(
        2, inner=inner(fraction_evaluate=0.0), dtype=dtype, change=fill(name, value)
    )

    assert statuses(strategy) == {"ok"}
    off = np.abs(result.arrays[name].numpy() - within).max()
    assert off < 0.005 * abs(value)
    assert off <= 3 * (1 + np.abs(within).max())


def test_a_frozen_normalisation_is_moved_by_all_or_nobody() -> None:
    alone, result = run(frozen=True, change=fill("norm.running_mean", 1.0))

    assert statuses(alone) == {"ok"}
    assert np.abs(result.arrays["norm.running_mean"].numpy()).max() <= 0.05
    assert statuses(run(frozen=True)[0]) == statuses(run()[0]) == {"ok"}


def test_a_round_in_which_most_hardly_move_refuses_nobody_for_moving() -> None:
    def nudge(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter *= 1.005

    strategy, _ = run(lr=1e-9, change=nudge)

    assert statuses(strategy) == {"ok"}


def test_examples_that_are_only_claimed_do_not_open_the_limit() -> None:
    def claims(node: int, reply: Any) -> Any:
        if node == 100 + BAD:
            reply.content["autoflip"]["autoflip-examples"] = 2**53
        return reply

    app = client_app(type("Own", (Node,), {"change": staticmethod(times(-9.9))}))
    options = guided(policy="random", threshold="2x")
    strategy = AutoFlip(FedAvg(fraction_evaluate=0.0), TinyNet(), EXAMPLE, **options)
    strategy.start(LocalGrid(app, NODES, claims), initial(), num_rounds=1)

    assert list(refused(strategy)) == [BAD]


def test_momentum_on_the_server_makes_no_variance_negative() -> None:
    inner = FedAvgM(fraction_evaluate=0.0, server_momentum=0.95)
    record = initial()
    record["norm.running_var"] = Array(np.full(6, 50, np.float32))
    options = guided(policy="random", threshold="2x")
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, **options)
    app = client_app(type("Own", (Node,), {"sizes": (120,) * NODES}))

    result = strategy.start(LocalGrid(app, NODES), record, num_rounds=6)

    assert (result.arrays["norm.running_var"].numpy() >= 0).all()
    assert statuses(strategy) == {"ok"}
