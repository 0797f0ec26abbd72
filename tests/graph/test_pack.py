"""Values of kept coordinates: by hand, there and back, and from strangers."""

from typing import Any

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

from flwr_autoflip import AutoFlipError, Layout, WireError, expand
from flwr_autoflip.graph.layout import TensorSpec
from flwr_autoflip.graph.pack import pack, pack_small, unpack_small
from flwr_autoflip.graph.plan import dense_plan

SEEDS = st.integers(0, 2**32 - 1)


def test_pack_and_unpack_by_hand() -> None:
    arrays = {
        "fc1.weight": np.float32([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]),
        "fc1.bias": np.float32([13, 14, 15, 16]),
        "fc2.weight": np.float32([[17, 18, 19, 20], [21, 22, 23, 24]]),
        "fc2.bias": np.float32([25, 26]),
    }

    units = pack(arrays, masked_plan().without_mask())
    weights = pack(arrays, masked_plan())
    small = unpack_small(weights, masked_plan())

    np.testing.assert_array_equal(
        units, [1, 2, 3, 7, 8, 9, 13, 15, 17, 19, 21, 23, 25, 26]
    )
    # Less (0, 1) = 2 and (2, 0) = 7 of fc1, (0, 2) = 19 and (1, 0) = 21 of fc2.
    np.testing.assert_array_equal(weights, [1, 3, 8, 9, 13, 15, 17, 23, 25, 26])
    assert units.dtype == np.float32
    np.testing.assert_array_equal(small["fc1.weight"], [[1, 0, 3], [0, 8, 9]])
    np.testing.assert_array_equal(small["fc1.bias"], [13, 15])
    np.testing.assert_array_equal(small["fc2.weight"], [[17, 0], [0, 23]])
    np.testing.assert_array_equal(small["fc2.bias"], [25, 26])


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, masked=st.booleans(), whole=st.booleans())
def test_expand_undoes_pack_on_kept_coordinates(
    name: str, seed: int, masked: bool, whole: bool
) -> None:
    layout = layout_of(name)
    plan = dense_plan(layout) if whole else random_plan(layout, seed, masked)
    arrays, base = random_arrays(layout, 1), random_arrays(layout, 2)
    for array in base.values():  # NaN and -0 count as what they are
        if array.dtype.kind == "f":
            array.ravel()[::3] = np.nan
            array.ravel()[1::3] = -0.0
    before = {n: a.tobytes() for n, a in base.items()}

    values = pack(arrays, plan)
    small = unpack_small(values, plan)

    np.testing.assert_array_equal(pack_small(small, plan), values)
    filled = {n: np.empty_like(a) for n, a in base.items()}
    for full in (
        expand(base, values, plan),
        expand(base, values, plan, filled),
        expand(base, small, plan),
    ):
        assert list(full) == list(base)
        for spec in layout.tensors:
            mask = plan.dense_mask(spec.name)
            expected = base[spec.name].copy()
            expected[mask] = arrays[spec.name][mask]
            assert full[spec.name].dtype == np.dtype(spec.dtype)
            assert full[spec.name].tobytes() == expected.tobytes(), spec.name
            assert base[spec.name].tobytes() == before[spec.name]


def test_second_names_take_no_values_and_get_those_of_the_first() -> None:
    one = TensorSpec("a", (3,), "float32", True, (None,))
    other = TensorSpec("b", (3,), "float32", False, (None,), same_as="a")
    plan = dense_plan(Layout((one, other), ()))
    values = np.float32([1, 2, 3])

    full = expand({n: np.zeros(3, np.float32) for n in "ab"}, values, plan)

    assert plan.num_values == plan.layout.num_parameters == 3
    np.testing.assert_array_equal(pack({"a": values, "b": values}, plan), values)
    np.testing.assert_array_equal(full["b"], values)


def test_integers_are_rounded_not_cut() -> None:
    plan = dense_plan(flat_layout())
    values = np.zeros(plan.num_values, np.float32)
    values[10] = 2.7  # after conv 4, norm 2 + 2 and running_mean 2

    small = unpack_small(values, plan)

    np.testing.assert_array_equal(small["norm.num_batches_tracked"], 3)
    assert small["norm.num_batches_tracked"].dtype == np.int64


BIG = np.zeros(26, np.float32)
BIG[5] = -(2.0**61)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(25, np.float32), "keeps 26 values"),
        (np.zeros((26, 1), np.float32), r"\(26, 1\)"),
        *((np.zeros(26, dtype), f"dtype {dtype}") for dtype in ("float64", "float16")),
        (np.full(26, np.nan, np.float32), "26 of 26"),
        (np.full(26, -np.inf, np.float32), "26 of 26"),
        (BIG, r"beyond 2\^60"),
        (-BIG, r"beyond 2\^60"),
        (np.full(26, 3.4e38, np.float32), r"beyond 2\^60"),
    ],
)
def test_values_that_do_not_fit_are_wire_errors(values: Any, message: str) -> None:
    plan = dense_plan(mlp_layout())

    with pytest.raises(WireError, match=message):
        expand(random_arrays(mlp_layout()), values, plan)


def test_what_does_not_fit_into_the_models_dtypes_is_refused() -> None:
    specs = (
        TensorSpec("w", (3,), "float16", True, (None,)),
        TensorSpec("n", (), "int32", False, ()),
    )
    plan = dense_plan(Layout(specs, ()))

    fits = unpack_small(np.float32([65504, 0, 0, 2**31 - 200]), plan)
    assert np.isfinite(fits["w"]).all()
    for values in ([1e5, 0, 0, 0], [0, 0, 0, 2**31], [0, 0, 0, -(2.0**33)]):
        with pytest.raises(WireError, match="does not fit"):
            unpack_small(np.float32(values), plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda small: small.pop("fc1.bias"), r"shape \(2,\), got nothing"),
        (lambda small: small.update({"fc1.bias": np.zeros(4)}), r"got \(4,\)"),
    ],
)
def test_arrays_of_another_model_are_refused(change: Any, message: str) -> None:
    plan, base = masked_plan(), random_arrays(mlp_layout())
    small = unpack_small(pack(base, plan), plan)
    change(small)

    with pytest.raises(AutoFlipError, match=f"'fc1.bias': .*{message}"):
        expand(base, small, plan)
