"""What the average becomes: exact where nobody trained, in the model's dtypes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ZOO, flat_layout, layout_of, mlp_layout, random_arrays, random_plan

from flwr_autoflip.core.aggregate import cast_to_layout, settle
from flwr_autoflip.core.plan import Plan


def test_settle_by_hand() -> None:
    layout = mlp_layout()
    plan = Plan(layout, {"fc1": np.array([1, 3])})
    last = {t.name: np.full(t.shape, 5, np.float32) for t in layout.tensors}
    average = {t.name: np.full(t.shape, 7.0) for t in layout.tensors}

    kept = settle(average, last, [plan])
    zeroed = settle(average, last, [plan], zero=True)

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

    zeroed = settle(average, last, [plan], zero=True)

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

    settled = settle(average, last, [plan])

    for spec in layout.tensors:
        trained = plan.dense_mask(spec.name)
        expected = last[spec.name].copy()
        expected[trained] = average[spec.name][trained]
        assert settled[spec.name].tobytes() == expected.tobytes()


def test_cast_by_hand() -> None:
    layout = flat_layout()
    arrays = {t.name: np.full(t.shape, 2.5, np.float64) for t in layout.tensors}
    arrays["norm.num_batches_tracked"] = np.array(3.7)

    cast = cast_to_layout(arrays, layout)

    assert {n: a.dtype.name for n, a in cast.items()} == {
        t.name: t.dtype for t in layout.tensors
    }
    np.testing.assert_array_equal(cast["norm.num_batches_tracked"], 4)
