"""Plans by hand, and the index map against a slow loop over owners."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import (
    ZOO,
    flat_layout,
    layout_of,
    mlp_layout,
    random_arrays,
    random_plan,
    tensor,
)

from flwr_autoflip import AutoFlipWarning, KeepError, Layout, Plan
from flwr_autoflip.graph.layout import Group
from flwr_autoflip.graph.plan import (
    dense_plan,
    keep_from_bool,
    warn_if_nothing_pruned,
)

HALF = Plan(mlp_layout(), {"fc1": np.array([0, 2])})
"""Neurons 0 and 2 of Linear 3 -> 4 -> 2."""

FLAT = Plan(flat_layout(), {"conv": np.array([1]), "fc1": np.array([0, 2])})
"""Filter 1 of 2 and neurons 0 and 2 of 3."""


def half_masked() -> Plan:
    """HALF without weights (0, 1) and (2, 0) of fc1."""
    mask = np.ones((4, 3), np.bool_)
    mask[0, 1] = mask[2, 0] = mask[1, 1] = False  # row 1 is pruned anyway
    return Plan(HALF.layout, HALF.keep, {"fc1.weight": mask})


# --- By hand ---


def test_index_and_alive_by_hand() -> None:
    index = FLAT.index

    np.testing.assert_array_equal(FLAT.alive, [False, True, True, False, True])
    # Filter 1 owns columns 2 and 3 of fc1; neurons 0, 2 are rows there.
    np.testing.assert_equal(list(index["conv.weight"]), [[1], None, None, None])
    np.testing.assert_equal(list(index["norm.running_mean"]), [[1]])
    assert index["norm.num_batches_tracked"] == ()
    np.testing.assert_equal(list(index["fc1.weight"]), [[0, 2], [2, 3]])
    np.testing.assert_equal(list(index["fc2.weight"]), [None, [0, 2]])


def test_shapes_counts_and_macs_by_hand() -> None:
    assert FLAT.small_shape("fc1.weight") == (2, 2)
    assert FLAT.small_shape("norm.num_batches_tracked") == ()
    # conv 2, norm 1 + 1, fc1 4 + 2, fc2 2; and buffers 1 + 1.
    assert FLAT.num_parameters == 12
    assert FLAT.num_values == 14
    # conv: 2 weights used at 2 places, fc1 2 x 2, fc2 1 x 2.
    assert FLAT.macs == 4 + 4 + 2
    # Dense: 4 weights at 2 places, 3 x 4, 1 x 3.
    assert dense_plan(flat_layout()).macs == 8 + 12 + 3


def test_single_weights_by_hand() -> None:
    plan = half_masked()

    # fc1.weight (2, 3) less 2, bias 2, fc2.weight 2 x 2, bias 2.
    np.testing.assert_array_equal(
        plan.small_mask["fc1.weight"], [[True, False, True], [False, True, True]]
    )
    assert plan.count("fc1.weight") == 4
    assert plan.num_parameters == plan.num_values == 4 + 2 + 4 + 2
    # Zeros are computed like any other weight: 2 x 3 + 2 x 2.
    assert plan.macs == 10
    assert plan.without_mask().small_mask == {}
    np.testing.assert_array_equal(plan.without_mask().keep["fc1"], [0, 2])


def test_mask_that_keeps_all_of_the_small_tensor_is_no_mask() -> None:
    mask = np.ones((4, 3), np.bool_)
    mask[1] = mask[3] = False  # neurons that are pruned anyway

    plan = Plan(HALF.layout, HALF.keep, {"fc1.weight": mask})

    assert plan.small_mask == {}
    assert plan.num_values == HALF.num_values


def test_take_put_and_add_by_hand() -> None:
    dense, bias, tracked = np.arange(12.0).reshape(4, 3), np.zeros(2), np.array(3)

    small = HALF.take("fc1.weight", dense)
    HALF.put("fc1.weight", dense, -1.0)
    HALF.add("fc1.weight", dense, np.float32([[0, 1, 2], [3, 4, 5]]))
    HALF.put("fc2.bias", bias, np.array([1.0, 2.0]))
    FLAT.put("norm.num_batches_tracked", tracked, 7)

    np.testing.assert_array_equal(small, [[0, 1, 2], [6, 7, 8]])
    np.testing.assert_array_equal(
        dense, [[-1, 0, 1], [3, 4, 5], [2, 3, 4], [9, 10, 11]]
    )
    np.testing.assert_array_equal(bias, [1, 2])
    np.testing.assert_array_equal(tracked, 7)


def test_apply_by_hand() -> None:
    arrays = {
        "fc1.weight": np.float32([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]),
        "fc1.bias": np.float32([1, 2, 3, 4]),
        "fc2.weight": np.float32([[1, 2, 3, 4], [5, 6, 7, 8]]),
        "fc2.bias": np.float32([1, 2]),
    }

    zeroed = half_masked().apply(arrays)

    np.testing.assert_array_equal(
        zeroed["fc1.weight"], [[1, 0, 3], [0, 0, 0], [0, 8, 9], [0, 0, 0]]
    )
    np.testing.assert_array_equal(zeroed["fc1.bias"], [1, 0, 3, 0])
    np.testing.assert_array_equal(zeroed["fc2.weight"], [[1, 0, 3, 0], [5, 0, 7, 0]])
    np.testing.assert_array_equal(zeroed["fc2.bias"], [1, 2])
    assert zeroed["fc1.weight"].dtype == np.float32
    assert arrays["fc1.weight"][0, 1] == 2  # the caller's are left alone
    flat = random_arrays(flat_layout())
    name = "norm.running_mean"  # buffers stay
    np.testing.assert_array_equal(FLAT.apply(flat)[name], flat[name])


def test_keep_from_bool_by_hand() -> None:
    keep = keep_from_bool({"a": np.array([True, False, True]), "b": np.array([True])})

    np.testing.assert_equal(keep, {"a": [0, 2], "b": [0]})


def test_second_names_have_the_mask_of_the_first() -> None:
    specs = tensor("a", 3), tensor("b", 3, trainable=False, same_as="a")
    mask = np.array([True, False, True])

    plan = Plan(Layout(specs, ()), {}, {"a": mask})

    np.testing.assert_array_equal(plan.dense_mask("b"), mask)
    assert plan.count("b") == 0


# --- Oracles ---


def naive_index(layout: Layout, plan: Plan, name: str) -> list[list[int]]:
    """List the kept indices of each axis, one owner at a time."""
    spec = layout.by_name[name]
    axes = []
    for length, owners in zip(spec.shape, spec.owners, strict=True):
        kept = []
        for i in range(length):
            owner = -1 if owners is None else owners[i]
            if owner == -1:
                kept.append(i)
            for group in layout.groups:
                if owner - group.first in plan.keep[group.name].tolist():
                    kept.append(i)
        axes.append(kept)
    return axes


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_index_and_masks_match_a_naive_loop(name: str, seed: int) -> None:
    layout = layout_of(name)
    plan = random_plan(layout, seed, masked=True)

    for spec in layout.tensors:
        axes = naive_index(layout, plan, spec.name)
        index = plan.index[spec.name]
        for axis, length, expected in zip(index, spec.shape, axes, strict=True):
            got = list(range(length)) if axis is None else axis.tolist()
            assert got == expected
        assert plan.small_shape(spec.name) == tuple(map(len, axes))
        mask = np.zeros(spec.shape, np.bool_)
        for place in itertools.product(*axes):
            mask[place] = plan.mask[spec.name][place] if spec.trainable else True
        np.testing.assert_array_equal(plan.dense_mask(spec.name), mask)
        assert plan.count(spec.name) == np.count_nonzero(mask)


@settings(max_examples=150, deadline=None)
@given(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=9), st.data())
def test_taking_is_numpys_indexing(shape: tuple[int, ...], data: st.DataObject) -> None:
    axes = [np.arange(n) for n in shape]
    groups, owners, keep, first = [], [], {}, 0
    for axis, length in enumerate(shape):
        kept = data.draw(st.none() | st.sets(st.integers(0, length - 1), min_size=1))
        if kept is None:
            owners.append(length)
            continue
        owners.append(range(first, first + length))
        groups.append(Group(f"g{axis}", first, length))
        axes[axis] = keep[f"g{axis}"] = np.array(sorted(kept))
        first += length
    plan = Plan(Layout((tensor("w", *owners),), tuple(groups)), keep)
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    transposed = np.asfortranarray(array)

    for given_array in (array, transposed):
        out = np.empty(plan.small_shape("w"), np.float32)
        plan.take("w", given_array, out)
        np.testing.assert_array_equal(out, array[np.ix_(*axes)])


@pytest.mark.parametrize("name", ZOO)
def test_dense_plan_keeps_everything(name: str) -> None:
    layout = layout_of(name)
    arrays = random_arrays(layout)

    plan = dense_plan(layout)

    assert plan.num_parameters == layout.num_parameters
    for spec in layout.tensors:
        assert plan.take(spec.name, arrays[spec.name]) is arrays[spec.name]
        assert plan.dense_mask(spec.name).all()
        np.testing.assert_array_equal(plan.apply(arrays)[spec.name], arrays[spec.name])


# --- Refusals and the warning ---


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({}, r"must name the groups \['fc1'\]"),
        ({"fc1": [0], "fc2": [0]}, r"got \['fc1', 'fc2'\]"),
        ({"fc1": []}, "at least one unit must be kept"),
        ({"fc1": [0, 4]}, r"must lie in \[0, 4\), got 4"),
        ({"fc1": [-1, 2]}, r"must lie in \[0, 4\), got -1"),
        ({"fc1": [2, 1]}, "ascend without repeats"),
        ({"fc1": [1, 1]}, "ascend without repeats"),
    ],
)
def test_keep_that_does_not_fit_is_refused(
    keep: dict[str, list[int]], message: str
) -> None:
    arrays = {name: np.array(kept, np.int64) for name, kept in keep.items()}

    with pytest.raises(KeepError, match=message):
        Plan(mlp_layout(), arrays)


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("fc1.weight", np.ones((4, 3), np.bool_)),
        ("fc1.weight", np.ones((3, 4))),
        ("fc9.weight", np.ones((3, 4), np.bool_)),
        ("norm.running_mean", np.array([True, False])),
    ],
    ids=["shape", "dtype", "name", "a buffer"],
)
def test_mask_that_does_not_fit_is_refused(name: str, mask: np.ndarray) -> None:
    with pytest.raises(KeepError, match=f"mask '{name}'"):
        Plan(flat_layout(), dense_plan(flat_layout()).keep, {name: mask})


def test_plan_that_prunes_nothing_warns() -> None:
    with pytest.warns(AutoFlipWarning, match="prunes nothing: ask for more"):
        warn_if_nothing_pruned(dense_plan(mlp_layout()), "ask for more")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_nothing_pruned(HALF, "ask for more")
        warn_if_nothing_pruned(half_masked(), "ask for more")
