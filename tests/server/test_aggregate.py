"""What the average becomes: exact where nobody trained, in the model's dtypes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ZOO, flat_layout, layout_of, mlp_layout, random_arrays, random_plan

from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.pack import expand, pack
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.server.round.aggregate import cast_to_layout, fill_values, merge


def test_merge_by_hand() -> None:
    layout = mlp_layout()
    plan = Plan(layout, {"fc1": np.array([1, 3])})
    last = {t.name: np.full(t.shape, 5, np.float32) for t in layout.tensors}
    average = {t.name: np.full(t.shape, 7.0) for t in layout.tensors}

    kept = merge(average, last, [plan])
    zeroed = merge(average, last, [plan], zero=True)

    np.testing.assert_array_equal(kept["fc1.bias"], [5, 7, 5, 7])
    np.testing.assert_array_equal(kept["fc2.weight"], [[5, 7, 5, 7]] * 2)
    np.testing.assert_array_equal(kept["fc2.bias"], [7, 7])
    np.testing.assert_array_equal(zeroed["fc1.bias"], [0, 7, 0, 7])
    assert kept["fc1.bias"].dtype == np.float32


def test_buffers_of_units_that_went_are_never_zeroed() -> None:
    layout = flat_layout()
    plan = Plan(layout, {"conv": np.array([1]), "fc1": np.arange(3)})
    last = {t.name: np.full(t.shape, 5, t.dtype) for t in layout.tensors}
    average = {t.name: np.full(t.shape, 7.6) for t in layout.tensors}

    zeroed = merge(average, last, [plan], zero=True)

    np.testing.assert_array_equal(zeroed["norm.running_mean"], np.float32([5, 7.6]))
    np.testing.assert_array_equal(zeroed["norm.weight"], np.float32([0, 7.6]))
    # 7.6 examples tracked are rounded, not cut.
    np.testing.assert_array_equal(zeroed["norm.num_batches_tracked"], 8)
    assert zeroed["norm.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), masked=st.booleans())
def test_what_nobody_trained_is_the_last_value_bit_for_bit(
    name: str, seed: int, masked: bool
) -> None:
    layout = layout_of(name)
    plan = random_plan(layout, seed, masked)
    average, last = random_arrays(layout, 1), random_arrays(layout, 2)

    settled = merge(average, last, [plan])

    for spec in layout.tensors:
        trained = plan.dense_mask(spec.name)
        expected = last[spec.name].copy()
        expected[trained] = average[spec.name][trained]
        assert settled[spec.name].tobytes() == expected.tobytes()


def test_merge_takes_what_any_plan_trained() -> None:
    layout = mlp_layout()
    plans = [Plan(layout, {"fc1": np.array(keep)}) for keep in ([1], [1, 3], [1])]
    last = {t.name: np.full(t.shape, 5, np.float32) for t in layout.tensors}
    average = {t.name: np.full(t.shape, 7.0) for t in layout.tensors}

    settled = merge(average, last, plans)

    np.testing.assert_array_equal(settled["fc1.bias"], [5, 7, 5, 7])


# --- Different plans: an average over those who trained ---

Models = list[dict[str, np.ndarray]]


def mean(models: Models, weights: list[float]) -> dict[str, np.ndarray]:
    """What FedAvg makes of full-shaped models."""
    return {
        name: sum(w * m[name] for w, m in zip(weights, models, strict=True))
        / sum(weights)
        for name in models[0]
    }


def filled(
    base: dict[str, np.ndarray], models: Models, plans: list[Plan], weights: list[float]
) -> Models:
    """Send models' kept values through the plans, and fill what others trained."""
    values = [pack(model, plan) for model, plan in zip(models, plans, strict=True)]
    stands = fill_values(base, values, plans, weights)
    return [expand(stands, v, plan) for v, plan in zip(values, plans, strict=True)]


def heterofl(
    base: dict[str, np.ndarray], small: Models, plans: list[Plan], weights: list[float]
) -> dict[str, np.ndarray]:
    """HeteroFL's combination (arXiv:2010.01264), weighted: add slices and counts."""
    combined = {}
    for spec in plans[0].layout.tensors:
        sums, counts = np.zeros(spec.shape), np.zeros(spec.shape)
        for model, plan, weight in zip(small, plans, weights, strict=True):
            alive = np.append(plan.alive, True)
            axes = [
                np.arange(length) if owner is None else np.flatnonzero(alive[owner])
                for owner, length in zip(spec.owners, spec.shape, strict=True)
            ]
            where = np.ix_(*axes) if axes else ()
            sums[where] += weight * model[spec.name]
            counts[where] += weight
        reached = counts > 0
        array = base[spec.name].astype(np.float64)
        array[reached] = sums[reached] / counts[reached]
        combined[spec.name] = array
    return combined


def test_fill_values_by_hand() -> None:
    layout = mlp_layout()
    keeps, weights = ([0, 1, 3], [1, 3], [3]), [1.0, 2.0, 1.0]
    plans = [Plan(layout, {"fc1": np.array(keep)}) for keep in keeps]
    base = {t.name: np.full(t.shape, 5, np.float32) for t in layout.tensors}
    models = [
        {t.name: np.full(t.shape, value, np.float32) for t in layout.tensors}
        for value in (1, 4, 7)
    ]

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


def test_with_equal_plans_the_base_stands_in() -> None:
    plan = dense_plan(mlp_layout())
    models = [random_arrays(plan.layout, seed) for seed in range(4)]
    values = [pack(model, plan) for model in models[1:]]

    stands = fill_values(models[0], values, [plan] * 3, [1, 2, 3])

    assert all(stands[name] is array for name, array in models[0].items())


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_weighted_mean_is_then_heterofls_average(name: str, seed: int) -> None:
    layout = layout_of(name)
    plans = [random_plan(layout, seed + node) for node in range(4)]
    weights = [10.0, 1.0, 25.0, 4.0]
    base = random_arrays(layout)
    models = [random_arrays(layout, 100 + node) for node in range(4)]
    small = [
        {name: plan.take(name, array) for name, array in model.items()}
        for model, plan in zip(models, plans, strict=True)
    ]

    average = mean(filled(base, models, plans, weights), weights)

    expected = heterofl(base, small, plans, weights)
    for spec in layout.tensors:
        np.testing.assert_allclose(
            average[spec.name], expected[spec.name], rtol=1e-6, err_msg=spec.name
        )


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_fill_values_against_a_loop_over_coordinates(seed: int) -> None:
    layout = flat_layout()
    plans = [random_plan(layout, seed + node, masked=True) for node in range(3)]
    weights, base = [3.0, 1.0, 2.0], random_arrays(layout)
    models = [random_arrays(layout, node) for node in range(3)]

    full = filled(base, models, plans, weights)

    for spec in layout.tensors:
        masks = [plan.dense_mask(spec.name) for plan in plans]
        for place in np.ndindex(spec.shape):
            who = [node for node in range(3) if masks[node][place]]
            total = sum(weights[node] * models[node][spec.name][place] for node in who)
            for node in range(3):
                value = full[node][spec.name][place]
                if node in who:
                    assert value == models[node][spec.name][place]
                elif not who:
                    assert value == base[spec.name][place]
                else:
                    share = total / sum(weights[n] for n in who)
                    np.testing.assert_allclose(value, share, rtol=1e-6)


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


def test_cast_by_hand() -> None:
    layout = flat_layout()
    arrays = {t.name: np.full(t.shape, 2.5, np.float64) for t in layout.tensors}
    arrays["norm.num_batches_tracked"] = np.array(3.7)

    cast = cast_to_layout(arrays, layout)

    assert {n: a.dtype.name for n, a in cast.items()} == {
        t.name: t.dtype for t in layout.tensors
    }
    np.testing.assert_array_equal(cast["norm.num_batches_tracked"], 4)
