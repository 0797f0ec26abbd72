"""Whose change is an outlier: by hand, and what one node may do to a model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from federation import EXAMPLE, RANDOM, Client, TinyNet, initial, node_data
from flwr.app import Array
from flwr.serverapp.strategy import FedAvg, FedAvgM, Result
from grid import refused, rows_of, start
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from examples.benchmarks import skew
from flwr_autoflip import AutoFlip, client_app
from flwr_autoflip.graph.pack import pack
from flwr_autoflip.graph.plan import dense_plan
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.server.round.outliers import (
    Change,
    Start,
    ratios_of_buffers,
    refuse_outliers,
)

PLAN = dense_plan(trace(TinyNet(), EXAMPLE))
torch.manual_seed(0)
BEFORE = {name: np.asarray(array) for name, array in arrays_of(TinyNet()).items()}
BEFORE["norm.running_var"] = np.float32([4, 4, 4, 4, 4, 4])
START = Start(pack(BEFORE, PLAN), PLAN)


def change_of(**added: float) -> Change:
    """Add to every value of some tensors, and measure."""
    after = {
        name: array + np.asarray(added.get(name.replace(".", "_"), 0), array.dtype)
        for name, array in BEFORE.items()
    }
    return START.measure(pack(after, PLAN), examples=10)


def test_changes_are_in_units_of_what_they_change() -> None:
    weights = [BEFORE[t.name].ravel() for t in PLAN.layout.tensors if t.trainable]
    flat = np.concatenate(weights).astype(float)

    change = change_of(fc2_weight=0.5, norm_running_mean=0.5, norm_running_var=2.0)

    expected = np.sqrt(24 * 0.5**2 / flat.size) / np.sqrt(np.square(flat).mean())
    assert change.parameters == pytest.approx(expected, rel=1e-5)
    assert change.buffers == {
        "norm.running_mean": pytest.approx(0.25, rel=1e-4),
        "norm.running_var": pytest.approx(0.5, rel=1e-4),
        "norm.num_batches_tracked": 0,
    }
    grown = change_of(norm_num_batches_tracked=5).buffers  # half a batch an example
    assert grown["norm.num_batches_tracked"] == 0.05


def test_of_an_update_only_the_norm_may_be_known() -> None:
    norm = np.sqrt(24 * 0.5**2)

    known, whole = START.measure_norm(norm, 10), change_of(fc2_weight=0.5)

    assert known.parameters == pytest.approx(whole.parameters, rel=1e-5)


def test_what_no_float_of_32_bits_holds_is_measured_too() -> None:
    assert np.isfinite(change_of(fc1_weight=2.0**64).parameters)


@pytest.mark.parametrize(
    ("name", "change"),
    [("norm_running_var", -4.5), ("norm_num_batches_tracked", -1.0)],
)
def test_buffers_that_cannot_be_are_put_back_whole(name: str, change: float) -> None:
    (shares,) = ratios_of_buffers([change_of(**{name: change})])

    assert {n.replace(".", "_"): share for n, share in shares.items()} == {name: 0.0}
    assert ratios_of_buffers([change_of(**{name: -change})]) == [{}]


# --- Outliers ---

steps = st.lists(st.floats(1, 10_000), min_size=3, max_size=30)


@given(
    steps, st.floats(0.3, 1), st.lists(st.floats(0.6, 1.6), min_size=30, max_size=30)
)
def test_nobody_is_refused_for_its_size(
    sizes: list[float], power: float, luck: list[float]
) -> None:
    # Training moves weights in proportion to steps at most, and a few times that.
    moved = [0.001 * s**power * x for s, x in zip(sizes, luck, strict=False)]
    changes = [Change(s, min(m, 1.0)) for s, m in zip(sizes, moved, strict=True)]

    assert refuse_outliers(changes) == {}


def test_a_number_of_examples_lets_a_node_move_so_far_and_no_farther() -> None:
    others = [Change(10, 0.05)] * 4

    for moved, far in ((0.2, False), (2.9, False), (3.1, True)):
        found = refuse_outliers([*others, Change(2.0**53, moved)])
        assert (4 in found) == far
    assert 4 in refuse_outliers([*others, Change(10, 0.6)])


def test_where_nobody_moves_a_buffer_nobody_may() -> None:
    def changes(others: float) -> list[Change]:
        moved = [others, others, others, others, 1.0]
        return [Change(10, 0.05, {"norm.running_mean": m}) for m in moved]

    assert ratios_of_buffers(changes(0.0))[4] == {"norm.running_mean": 0.1}
    assert ratios_of_buffers(changes(0.9))[4] == {}


def test_nodes_that_did_not_train_are_nobodys_measure() -> None:
    idle = [Change(1, 0.0)] * 9

    assert refuse_outliers([*idle, *[Change(10, 0.5)] * 3]) == {}
    assert refuse_outliers([Change(1, 0.5), Change(1, 99.0)]) == {}
    assert list(refuse_outliers([None, *[Change(10, 0.5)] * 3, Change(10, 9)])) == [4]


def test_all_buffers_that_are_outliers_are_put_back_by_hand() -> None:
    usual = [Change(10, 0.05, {"a": 0.5, "b": 0.5, "c": 0.5})] * 4
    one = Change(10, 0.05, {"a": 10.0, "b": 50.0, "c": np.nan})

    shares = ratios_of_buffers([*usual, one])

    # The limit is 10 x .5; what cannot be is put back whole.
    assert shares == [{}] * 4 + [{"a": 0.5, "b": 0.1, "c": 0.0}]


def test_a_counter_may_grow_by_a_batch_an_example_and_no_more() -> None:
    name = "norm.num_batches_tracked"
    usual, most, over = (Change(10, 0.05, {name: x}) for x in (0.001, 0.1, 0.4))

    shares = ratios_of_buffers([usual, usual, usual, most, over])

    assert shares == [{}] * 4 + [{name: 0.25}]


def test_what_is_put_back_by_hand() -> None:
    after = {**BEFORE, "norm.running_var": BEFORE["norm.running_var"] + 8}
    after["fc2.bias"] = BEFORE["fc2.bias"] + 1
    values = pack(after, PLAN)

    held = START.put_back(values, {"norm.running_var": 0.25})

    expected = {**after, "norm.running_var": np.float32([6, 6, 6, 6, 6, 6])}
    np.testing.assert_array_equal(held, pack(expected, PLAN))
    np.testing.assert_array_equal(values, pack(after, PLAN))  # not in place


# --- In a federation ---

NODES, BAD = 5, 1


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
    rounds: int = 2,
    inner: Any = FedAvg,
    dtype: Any = "float32",
    fault: Any = None,
    arrays: Any = None,
    **kind: Any,
) -> tuple[AutoFlip, Result]:
    """Run nodes of a kind; its ``change`` is what the bad one does."""
    if change := kind.get("change"):
        kind["change"] = staticmethod(change)
    options: dict[str, Any] = {"method": RANDOM, "value_dtype": dtype}
    strategy = AutoFlip(inner(fraction_evaluate=0.0), TinyNet(), EXAMPLE, **options)
    app = client_app(type("Own", (Node,), kind))
    return strategy, start(strategy, rounds, NODES, app, fault, arrays)


def times(factor: float) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter *= factor

    return change


def fill(name: str, value: float) -> Callable[[nn.Module], None]:
    return lambda model: model.state_dict()[name].fill_(value)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_no_honest_node_is_refused_for_its_size(dtype: str) -> None:
    strategy, _ = run(3, dtype=dtype, sizes=(6000, 12, 12, 12, 12))

    assert refused(strategy) == {}
    assert len(rows_of(strategy)) == 3 * NODES


@pytest.mark.slow
@pytest.mark.parametrize("dtype", skew.DTYPES)
@pytest.mark.parametrize("bad", [False, True])
def test_a_thousandfold_skew_refuses_the_bad_and_nobody_else(
    dtype: str, bad: bool
) -> None:
    row = skew.run(nodes=20, rounds=3, value_dtype=dtype, bad=bad)

    assert row["honest refused"] == 0, row["reasons"]
    assert row["bad refused"] == row["bad"] == (6 if bad else 0)


@pytest.mark.parametrize("factor", [-9.9, 10])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_node_that_moves_parameters_too_far_is_refused(
    factor: float, dtype: str
) -> None:
    strategy, result = run(3, dtype=dtype, change=times(factor))

    assert list(refused(strategy)) == [BAD]
    assert "its parameters moved by" in refused(strategy)[BAD]
    model = strategy.deployable_model(result.arrays)
    assert model(node_data(0)[0]).isfinite().all()


def test_examples_that_are_only_claimed_do_not_lift_the_limit() -> None:
    def claims(node: int, reply: Any) -> Any:
        if node == 100 + BAD:
            reply.content["autoflip"]["autoflip-examples"] = 2**53
        return reply

    strategy, _ = run(1, fault=claims, change=times(-9.9))

    assert list(refused(strategy)) == [BAD]


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
def test_a_buffer_that_is_an_outlier_is_put_back_and_training_counts(
    name: str, value: float, dtype: str, inner: Any
) -> None:
    within = run(2, dtype=dtype)[1].arrays[name].numpy()

    strategy, result = run(2, inner, dtype, change=fill(name, value))

    assert refused(strategy) == {}
    off = np.abs(result.arrays[name].numpy() - within).max()
    assert off < 0.005 * abs(value)
    assert off <= 3 * (1 + np.abs(within).max())


def test_a_frozen_normalisation_is_moved_by_all_or_nobody() -> None:
    alone, result = run(frozen=True, change=fill("norm.running_mean", 1.0))

    assert np.abs(result.arrays["norm.running_mean"].numpy()).max() <= 0.05
    assert refused(alone) == refused(run(frozen=True)[0]) == {}


def test_a_round_in_which_most_hardly_move_refuses_nobody_for_moving() -> None:
    strategy, _ = run(lr=1e-9, change=times(1.005))

    assert refused(strategy) == {}


def test_momentum_on_the_server_makes_no_variance_negative() -> None:
    record = initial()
    record["norm.running_var"] = Array(np.full(6, 50, np.float32))

    def inner(**options: Any) -> FedAvgM:
        return FedAvgM(server_momentum=0.95, **options)

    strategy, result = run(6, inner, arrays=record, sizes=(120,) * NODES)

    assert (result.arrays["norm.running_var"].numpy() >= 0).all()
    assert refused(strategy) == {}
