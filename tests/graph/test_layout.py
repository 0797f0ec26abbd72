"""Layouts by hand, and layouts and arrays that cannot be."""

import numpy as np
import pytest
from models import flat_layout, mlp_layout, random_arrays

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.graph.layout import Group, Layout, TensorSpec, check_arrays


def test_counts_and_own_axes_by_hand() -> None:
    layout = flat_layout()

    assert layout.num_units == 5
    # conv 4, norm 2 + 2, fc1 12 + 3, fc2 3; buffers do not count.
    assert layout.num_parameters == 26
    assert layout.by_name["fc1.weight"].size == 12
    assert layout.by_name["norm.num_batches_tracked"].size == 1
    # Owned axes that consume nothing.
    assert layout.by_name["fc1.weight"].own_axes == (0,)
    assert layout.by_name["norm.bias"].own_axes == (0,)
    assert layout.by_name["fc2.weight"].own_axes == ()


def test_layers_that_no_unit_touches() -> None:
    untouched = TensorSpec("head.weight", (2, 2), "float32", True, (None, None))
    layout = Layout((*mlp_layout().tensors, untouched), mlp_layout().groups)

    assert layout.fixed == {"head.weight"}
    assert layout.fixed_layers == ["head"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((Group("a", 1, 4),), "must start at unit 0"),
        ((Group("a", 0, 2), Group("b", 3, 1)), "'b' must start at unit 2"),
        ((Group("a", 0, 0),), "at least one unit"),
    ],
)
def test_groups_that_do_not_follow_each_other_are_refused(
    groups: tuple[Group, ...], message: str
) -> None:
    with pytest.raises(AutoFlipError, match=message):
        Layout((), groups)


@pytest.mark.parametrize(
    ("owners", "message"),
    [
        ((), "1 axes need as many owners, got 0"),
        ((np.array([0, 1]),), "expected 3 owners"),
        ((np.array([0, 1, 2]),), r"must lie in \[-1, 2\), got \[0, 2\]"),
        ((np.array([-2, 1, 0]),), r"got \[-2, 1\]"),
    ],
)
def test_owners_that_do_not_fit_are_refused(
    owners: tuple[np.ndarray, ...], message: str
) -> None:
    spec = TensorSpec("w", (3,), "float32", True, owners)

    with pytest.raises(AutoFlipError, match=message):
        Layout((spec,), (Group("a", 0, 2),))


@pytest.mark.parametrize(
    ("shape", "dtype", "trainable", "first"),
    [
        ((3,), "float32", False, "b"),
        ((2,), "float32", False, "a"),
        ((3,), "float64", False, "a"),
        ((3,), "float32", True, "a"),
    ],
    ids=["no such tensor", "shape", "dtype", "a parameter of its own"],
)
def test_second_names_that_cannot_be_are_refused(
    shape: tuple[int, ...], dtype: str, trainable: bool, first: str
) -> None:
    one = TensorSpec("a", (3,), "float32", True, (None,))
    other = TensorSpec("b", shape, dtype, trainable, (None,), same_as=first)

    with pytest.raises(AutoFlipError, match=f"'b' cannot be '{first}'"):
        Layout((one, other), ())


def test_arrays_of_the_model_pass() -> None:
    check_arrays(flat_layout(), random_arrays(flat_layout()), whose="initial arrays")


def test_all_faults_come_in_one_error() -> None:
    arrays = random_arrays(mlp_layout())
    arrays["fc3.bias"] = arrays.pop("fc2.bias")
    arrays["fc1.weight"] = arrays["fc1.weight"].T

    with pytest.raises(AutoFlipError, match="initial arrays do not") as caught:
        check_arrays(mlp_layout(), arrays, whose="initial arrays")

    assert "fc2.bias: expected (2,), got nothing" in str(caught.value)
    assert "fc3.bias: expected nothing, got (2,)" in str(caught.value)
    assert "fc1.weight: expected (4, 3), got (3, 4)" in str(caught.value)
