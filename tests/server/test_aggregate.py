"""The average: over those who trained, exact elsewhere, in the model's dtypes."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from federation import EXAMPLE, RANDOM, TinyNet, initial
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
from grid import numbers, start
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ZOO, flat_layout, layout_of, mlp_layout, random_arrays, random_plan

from flwr_autoflip import AutoFlip
from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.pack import expand, pack
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.methods import AuthorsCode, PruneFL
from flwr_autoflip.server.hosts import only_averages
from flwr_autoflip.server.round.aggregate import cast_to_layout, fill_values, merge

Models = list[dict[str, np.ndarray]]
SEEDS = st.integers(0, 2**32 - 1)


def constant(layout: Layout, value: float, dtype: Any = None) -> dict[str, np.ndarray]:
    return {t.name: np.full(t.shape, value, dtype or t.dtype) for t in layout.tensors}


# --- Where nobody trained ---


@pytest.mark.parametrize(
    ("keeps", "zero", "bias"),
    [
        ([[1, 3]], False, [5, 7, 5, 7]),
        ([[1], [1, 3], [1]], False, [5, 7, 5, 7]),  # whatever any of the plans trains
        ([[1, 3]], True, [0, 7, 0, 7]),
    ],
)
def test_merge_by_hand(keeps: list[list[int]], zero: bool, bias: list[int]) -> None:
    layout = mlp_layout()
    plans = [Plan(layout, {"fc1": np.array(keep)}) for keep in keeps]

    merged = merge(constant(layout, 7, float), constant(layout, 5), plans, zero=zero)

    np.testing.assert_array_equal(merged["fc1.bias"], bias)
    np.testing.assert_array_equal(merged["fc2.weight"], [bias] * 2)
    np.testing.assert_array_equal(merged["fc2.bias"], [7, 7])
    assert merged["fc1.bias"].dtype == np.float32


def test_buffers_of_pruned_units_are_never_zeroed() -> None:
    layout = flat_layout()
    plan = Plan(layout, {"conv": np.array([1]), "fc1": np.arange(3)})

    zeroed = merge(constant(layout, 7.6, float), constant(layout, 5), [plan], zero=True)

    np.testing.assert_array_equal(zeroed["norm.running_mean"], np.float32([5, 7.6]))
    np.testing.assert_array_equal(zeroed["norm.weight"], np.float32([0, 7.6]))
    # 7.6 batches are rounded, not cut.
    np.testing.assert_array_equal(zeroed["norm.num_batches_tracked"], 8)
    assert zeroed["norm.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=5, deadline=None)
@given(seed=SEEDS, masked=st.booleans())
def test_what_nobody_trained_is_the_last_value_bit_for_bit(
    name: str, seed: int, masked: bool
) -> None:
    layout = layout_of(name)
    plan = random_plan(layout, seed, masked)
    average, last = random_arrays(layout, 1), random_arrays(layout, 2)

    merged = merge(average, last, [plan])

    for spec in layout.tensors:
        trained = plan.dense_mask(spec.name)
        expected = last[spec.name].copy()
        expected[trained] = average[spec.name][trained]
        assert merged[spec.name].tobytes() == expected.tobytes()


def test_cast_by_hand() -> None:
    layout = flat_layout()
    arrays = constant(layout, 2.5, float)
    arrays["norm.num_batches_tracked"] = np.array(3.7)

    cast = cast_to_layout(arrays, layout)

    dtypes = {name: array.dtype.name for name, array in cast.items()}
    assert dtypes == {t.name: t.dtype for t in layout.tensors}
    np.testing.assert_array_equal(cast["norm.num_batches_tracked"], 4)


# --- Different plans: an average over those who trained ---


def filled(
    base: dict[str, np.ndarray], models: Models, plans: list[Plan], weights: list[float]
) -> Models:
    """Send models' kept values through the plans, and fill in what others trained."""
    values = [pack(model, plan) for model, plan in zip(models, plans, strict=True)]
    fills = fill_values(base, values, plans, weights)
    return [expand(fills, v, plan) for v, plan in zip(values, plans, strict=True)]


def mean(models: Models, weights: list[float]) -> dict[str, np.ndarray]:
    """What FedAvg makes of full-shaped models."""
    return {
        name: sum(w * m[name] for w, m in zip(weights, models, strict=True))
        / sum(weights)
        for name in models[0]
    }


def heterofl(
    base: dict[str, np.ndarray], models: Models, plans: list[Plan], weights: list[float]
) -> dict[str, np.ndarray]:
    """HeteroFL's average (arXiv:2010.01264): values and counts are added up."""
    combined = {}
    for name, last in base.items():
        sums, counts = np.zeros(last.shape), np.zeros(last.shape)
        for model, plan, weight in zip(models, plans, weights, strict=True):
            sums += weight * np.where(plan.dense_mask(name), model[name], 0)
            counts += weight * plan.dense_mask(name)
        combined[name] = np.where(counts, sums / np.maximum(counts, 1), last)
    return combined


def test_fill_values_by_hand() -> None:
    layout = mlp_layout()
    weights = [1.0, 2.0, 1.0]
    plans = [Plan(layout, {"fc1": np.array(k)}) for k in ([0, 1, 3], [1, 3], [3])]
    base, models = constant(layout, 5), [constant(layout, value) for value in (1, 4, 7)]

    full = filled(base, models, plans, weights)

    # Neuron 1: (1 * 1 + 2 * 4) / 3 = 3 for the node that has none; 2 stays as it was.
    np.testing.assert_array_equal(full[0]["fc1.bias"], [1, 1, 5, 1])
    np.testing.assert_array_equal(full[1]["fc1.bias"], [1, 4, 5, 4])
    np.testing.assert_array_equal(full[2]["fc1.bias"], [1, 3, 5, 7])
    average = mean(full, weights)
    # Neuron 3, which all have: (1 + 8 + 7) / 4.
    np.testing.assert_array_equal(average["fc1.bias"], [1, 3, 5, 4])
    np.testing.assert_array_equal(average["fc2.weight"], [[1, 3, 5, 4]] * 2)
    np.testing.assert_array_equal(average["fc2.bias"], [4, 4])
    assert full[1]["fc1.bias"].dtype == np.float32
    np.testing.assert_array_equal(base["fc1.bias"], [5, 5, 5, 5])  # untouched


def test_with_equal_plans_nothing_is_filled() -> None:
    plan = dense_plan(mlp_layout())
    models = [random_arrays(plan.layout, seed) for seed in range(4)]
    values = [pack(model, plan) for model in models[1:]]

    fills = fill_values(models[0], values, [plan] * 3, [1, 2, 3])

    assert all(fills[name] is array for name, array in models[0].items())


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=5, deadline=None)
@given(seed=SEEDS, masked=st.booleans())
def test_any_weighted_mean_is_then_heterofls_average(
    name: str, seed: int, masked: bool
) -> None:
    layout = layout_of(name)
    plans = [random_plan(layout, seed + node, masked) for node in range(4)]
    weights = [10.0, 1.0, 25.0, 4.0]
    base = random_arrays(layout)
    models = [random_arrays(layout, 100 + node) for node in range(4)]

    average = mean(filled(base, models, plans, weights), weights)

    expected = heterofl(base, models, plans, weights)
    for spec in layout.tensors:
        np.testing.assert_allclose(
            average[spec.name], expected[spec.name], rtol=1e-6, err_msg=spec.name
        )


def test_integers_are_not_rounded_before_the_average() -> None:
    layout = layout_of("batch_norm")
    (counter,) = [t for t in layout.tensors if t.name == "norm.num_batches_tracked"]
    owned = Layout(
        tuple(
            replace(t, shape=(5,), owners=(np.arange(5),)) if t is counter else t
            for t in layout.tensors
        ),
        layout.groups,
    )
    keeps = ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0])
    plans = [
        Plan(owned, {**dense_plan(owned).keep, "conv": np.array(k)}) for k in keeps
    ]
    models = [random_arrays(owned, node) for node in range(3)]
    for model, value in zip(models, (1, 2, 9), strict=True):
        model[counter.name] = np.full(5, value)

    full = filled(random_arrays(owned), models, plans, [1, 1, 1])

    np.testing.assert_array_equal(full[2][counter.name], [9, 1.5, 1.5, 1.5, 1.5])


# --- Kept values straight to the average, or dense models to whoever needs them ---

NODES = 4


class Dense(FedAvg):
    """FedAvg whose aggregation is its own, so that it is given dense models."""

    seen: list[int]

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        self.seen = [len(reply.content["arrays"]) for reply in replies]
        return super().aggregate_train(server_round, replies)


class Flat(FedAvg):
    """FedAvg as it is, but for a look at what it is given."""

    seen: list[int]

    def _check_and_log_replies(
        self, replies: Any, is_train: bool, validate: bool = True
    ) -> tuple[list[Message], list[Message]]:
        replies = list(replies)
        if is_train:
            self.seen = [len(reply.content["arrays"]) for reply in replies]
        return super()._check_and_log_replies(replies, is_train, validate)


@pytest.mark.parametrize(
    "options",
    [
        {"value_dtype": "float16"},
        {"value_dtype": "int8"},
        {"method": AuthorsCode(epochs=1)},
        {"method": PruneFL(threshold="2x")},
        {"method": "dense"},
    ],
    ids=str,
)
def test_flat_values_give_the_same_model(options: dict[str, Any]) -> None:
    found = []
    for inner in (Flat(fraction_evaluate=0.0), Dense(fraction_evaluate=0.0)):
        exactly = {"method": RANDOM, "value_dtype": "float32", **options}
        strategy = AutoFlip(inner, TinyNet(), EXAMPLE, **exactly)
        found.append(numbers(start(strategy, rounds=3)))
        count = 1 if isinstance(inner, Flat) else len(strategy.layout.tensors)
        assert inner.seen == [count] * NODES

    # A mean in the order of the replies either way.
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name], name)
        assert array.dtype == found[1][name].dtype == initial()[name].numpy().dtype


@pytest.mark.parametrize(
    ("inner", "averages"),
    [
        (FedAvg(), True),
        (FedProx(proximal_mu=0.1), True),
        (FedAvgM(server_momentum=0.9), False),
        (FedAdam(), False),
        (FedMedian(), False),
        (DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1, 1, 2), False),
        (Dense(), False),
    ],
)
def test_who_only_averages(inner: Strategy, averages: bool) -> None:
    assert only_averages(inner) == averages


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
    strategy = AutoFlip(Looks(fraction_evaluate=0.0), TinyNet(), EXAMPLE)
    gc.collect()
    gc.disable()  # reference cycles would stay
    try:
        start(strategy, rounds=1, fault=fault)
    finally:
        gc.enable()

    assert len(came) == NODES
    assert alive == [0]
