"""Values of kept coordinates: by hand, there and back, and from strangers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    ZOO,
    flat_layout,
    layout_of,
    masked_plan,
    mlp_layout,
    random_arrays,
    random_plan,
)

from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.pack import (
    expand,
    pack,
    pack_small,
    unpack_small,
)
from flwr_autoflip.graph.plan import dense_plan

SEEDS = st.integers(0, 2**32 - 1)


def test_pack_by_hand() -> None:
    arrays = {
        "fc1.weight": np.float32([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]),
        "fc1.bias": np.float32([13, 14, 15, 16]),
        "fc2.weight": np.float32([[17, 18, 19, 20], [21, 22, 23, 24]]),
        "fc2.bias": np.float32([25, 26]),
    }

    units = pack(arrays, masked_plan().without_mask())
    weights = pack(arrays, masked_plan())

    np.testing.assert_array_equal(
        units, [1, 2, 3, 7, 8, 9, 13, 15, 17, 19, 21, 23, 25, 26]
    )
    # Less (0, 1) = 2 and (2, 0) = 7 of fc1, (0, 2) = 19 and (1, 0) = 21 of fc2.
    np.testing.assert_array_equal(weights, [1, 3, 8, 9, 13, 15, 17, 23, 25, 26])
    assert units.dtype == np.float32


def test_unpack_by_hand() -> None:
    values = np.float32([1, 3, 8, 9, 13, 15, 17, 23, 25, 26])

    small = unpack_small(values, masked_plan())

    np.testing.assert_array_equal(small["fc1.weight"], [[1, 0, 3], [0, 8, 9]])
    np.testing.assert_array_equal(small["fc1.bias"], [13, 15])
    np.testing.assert_array_equal(small["fc2.weight"], [[17, 0], [0, 23]])
    np.testing.assert_array_equal(small["fc2.bias"], [25, 26])


def bits(array: np.ndarray) -> bytes:
    """Give an array's bytes: NaN and -0 count as what they are."""
    return array.tobytes()


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, masked=st.booleans())
def test_expand_undoes_pack_on_kept_coordinates(
    name: str, seed: int, masked: bool
) -> None:
    layout = layout_of(name)
    plan = random_plan(layout, seed, masked)
    arrays, base = random_arrays(layout, 1), random_arrays(layout, 2)
    for array in base.values():
        if array.dtype.kind == "f":
            array.ravel()[::3] = np.nan
            array.ravel()[1::3] = -0.0
    before = {n: bits(a) for n, a in base.items()}

    full = expand(base, pack(arrays, plan), plan)

    assert list(full) == list(base)
    for spec in layout.tensors:
        mask = plan.dense_mask(spec.name)
        expected = base[spec.name].copy()
        expected[mask] = arrays[spec.name][mask]
        assert full[spec.name].dtype == np.dtype(spec.dtype)
        assert bits(full[spec.name]) == bits(expected), spec.name
        assert bits(base[spec.name]) == before[spec.name]


@pytest.mark.parametrize("name", ZOO)
def test_keeping_all_is_the_identity(name: str) -> None:
    layout = layout_of(name)
    arrays, base = random_arrays(layout, 1), random_arrays(layout, 2)
    plan = dense_plan(layout)

    values = pack(arrays, plan)
    full = expand(base, values, plan)

    assert values.size == sum(a.size for a in arrays.values())
    for tensor, array in arrays.items():
        assert bits(full[tensor]) == bits(array), tensor


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=6, deadline=None)
@given(seed=SEEDS, masked=st.booleans())
def test_small_arrays_survive_their_values(name: str, seed: int, masked: bool) -> None:
    layout = layout_of(name)
    plan = random_plan(layout, seed, masked)
    values = np.arange(1, plan.num_values + 1, dtype=np.float32)

    small = unpack_small(values, plan)

    assert {n: a.shape for n, a in small.items()} == {
        t.name: plan.small_shape(t.name) for t in layout.tensors
    }
    np.testing.assert_array_equal(pack_small(small, plan), values)


def test_integers_are_rounded_not_cut() -> None:
    plan = dense_plan(flat_layout())
    values = np.zeros(plan.num_values, np.float32)
    values[10] = 2.7  # after conv 4, norm 2 + 2 and running_mean 2

    small = unpack_small(values, plan)

    np.testing.assert_array_equal(small["norm.num_batches_tracked"], 3)
    assert small["norm.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(25, np.float32), "keeps 26 values"),
        (np.zeros((26, 1), np.float32), r"\(26, 1\)"),
        (np.zeros(26, np.float64), "dtype float64"),
        (np.zeros(26, np.int32), "dtype int32"),
        (np.full(26, np.nan, np.float32), "26 of 26"),
        (np.full(26, -np.inf, np.float32), "26 of 26"),
        (np.zeros(26, np.float16), "dtype float16"),
    ],
)
def test_values_that_do_not_fit_are_wire_errors(
    values: np.ndarray, message: str
) -> None:
    plan = dense_plan(mlp_layout())

    with pytest.raises(WireError, match=message):
        expand(random_arrays(mlp_layout()), values, plan)


# --- Sixteen bits ---
