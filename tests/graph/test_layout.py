"""Layouts by hand, their bytes, and what is refused."""

import json
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    ZOO,
    flat_layout,
    layout_of,
    mlp_layout,
    random_arrays,
)

from flwr_autoflip.errors import AutoFlipError, WireError
from flwr_autoflip.graph.layout import (
    Group,
    Layout,
    TensorSpec,
    check_arrays,
    layout_to_bytes,
)
from flwr_autoflip.graph.parse import layout_from_bytes

MLP_JSON = (
    '{"tensors":['
    '["fc1.weight",[4,3],"float32",1,[[[0,4,1]],null],[1],1.0,0],'
    '["fc1.bias",[4],"float32",1,[[[0,4,1]]],[],0.0,0],'
    '["fc2.weight",[2,4],"float32",1,[null,[[0,4,1]]],[1],1.0,0],'
    '["fc2.bias",[2],"float32",1,[null],[],0.0,0]],'
    '"groups":[["fc1",0,4]]}'
)
"""Linear 3 -> 4 -> 2, written by hand: owners 0 1 2 3 are the run [0, 4, 1]."""


def body() -> dict[str, Any]:
    """Give the layout's JSON as Python values."""
    value: dict[str, Any] = json.loads(MLP_JSON)
    return value


def squeeze(value: Any) -> bytes:
    """Deflate JSON as the wire does."""
    return zlib.compress(json.dumps(value).encode())


# --- By hand ---


def test_counts_by_hand() -> None:
    layout = flat_layout()

    assert layout.num_units == 5
    # conv 4, norm 2 + 2, fc1 12 + 3, fc2 3; buffers do not count.
    assert layout.num_parameters == 26
    assert layout.by_name["fc1.weight"].size == 12
    assert layout.by_name["norm.num_batches_tracked"].size == 1


def test_own_axes_are_owned_axes_that_consume_nothing() -> None:
    layout = flat_layout()

    assert layout.by_name["fc1.weight"].own_axes == (0,)
    assert layout.by_name["norm.bias"].own_axes == (0,)
    assert layout.by_name["fc2.weight"].own_axes == ()


def test_bytes_by_hand() -> None:
    assert zlib.decompress(layout_to_bytes(mlp_layout())).decode() == MLP_JSON


def test_digest_is_a_frozen_value() -> None:
    # hashlib.blake2b(MLP_JSON.encode(), digest_size=16).hexdigest()
    assert mlp_layout().digest.hex() == "0aec9a442aef4298fa649c136fa54783"


def test_runs_by_hand() -> None:
    owners = [-1, -1, 0, 0, 1, 1, 2, 5, 6, 0]
    spec = TensorSpec("w", (10,), "float32", True, (np.array(owners),))
    layout = Layout((spec,), (Group("w", 0, 7),))

    runs = json.loads(zlib.decompress(layout_to_bytes(layout)))["tensors"][0][4]

    # Nobody twice; 0 and 1 twice each; 2 once; 5 and 6 once each; 0 once.
    assert runs == [[[-1, 1, 2], [0, 2, 2], [2, 1, 1], [5, 2, 1], [0, 1, 1]]]


# --- Round trips ---


@pytest.mark.parametrize("name", ZOO)
def test_bytes_give_the_layout_back(name: str) -> None:
    layout = layout_of(name)

    again = layout_from_bytes(layout_to_bytes(layout))

    assert again.digest == layout.digest
    assert again.groups == layout.groups
    assert layout.encoded == layout_to_bytes(layout)
    for one, other in zip(again.tensors, layout.tensors, strict=True):
        assert (one.name, one.shape, one.dtype) == (
            other.name,
            other.shape,
            other.dtype,
        )
        assert one.trainable == other.trainable
        assert one.normalized == other.normalized
        assert one.input_axes == other.input_axes
        assert one.macs_per_weight == other.macs_per_weight
        for mine, theirs in zip(one.owners, other.owners, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                np.testing.assert_array_equal(mine, theirs)


@settings(deadline=None)
@given(st.lists(st.integers(-1, 8), min_size=1, max_size=40))
def test_any_owners_survive_the_bytes(owners: list[int]) -> None:
    spec = TensorSpec("w", (len(owners),), "int64", False, (np.array(owners),))
    layout = Layout((spec,), (Group("a", 0, 9),))

    again = layout_from_bytes(layout_to_bytes(layout))

    np.testing.assert_array_equal(again.tensors[0].owners[0], owners)


@pytest.mark.parametrize("change", ["name", "shape", "dtype", "trainable", "group"])
def test_digest_differs_with_the_layout(change: str) -> None:
    value = body()
    row = value["tensors"][3]
    if change == "name":
        row[0] = "fc2.shift"
    elif change == "shape":
        row[1] = [3]
    elif change == "dtype":
        row[2] = "float16"
    elif change == "trainable":
        row[3] = 0
    else:
        value["groups"] = [["fc1", 0, 3], ["fc2", 3, 1]]

    assert layout_from_bytes(squeeze(value)).digest != mlp_layout().digest


# --- Bytes from strangers ---


def test_truncated_layout_is_a_wire_error() -> None:
    data = layout_to_bytes(flat_layout())

    for length in range(len(data)):
        with pytest.raises(WireError):
            layout_from_bytes(data[:length])


def test_surplus_bytes_are_a_wire_error() -> None:
    with pytest.raises(WireError):
        layout_from_bytes(layout_to_bytes(mlp_layout()) + b"\0")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        layout_from_bytes(data)


def test_layout_that_inflates_beyond_4_mib_is_a_wire_error() -> None:
    with pytest.raises(WireError, match="4 MiB"):
        layout_from_bytes(zlib.compress(b" " * ((1 << 22) + 1)))


def test_deeply_nested_json_is_a_wire_error() -> None:
    with pytest.raises(WireError):
        layout_from_bytes(zlib.compress(b"[" * 200_000))


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["float32", "O", "f4,f4", "(2,)i4", "1000000000S"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(junk=JUNK, seed=st.integers(0, 2**32 - 1))
def test_any_field_replaced_by_junk_is_read_or_a_wire_error(
    junk: Any, seed: int
) -> None:
    value: Any = {"root": body()}
    generator = np.random.default_rng(seed)
    holder: Any = value
    key: Any = "root"
    while isinstance(holder[key], (list, dict)) and len(holder[key]):
        holder = holder[key]
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = keys[generator.integers(len(keys))]
        if generator.random() < 0.2:
            break
    holder[key] = junk

    try:
        layout = layout_from_bytes(squeeze(value["root"]))
    except WireError:
        return
    for spec in layout.tensors:
        assert len(spec.owners) == len(spec.shape)
        assert all(o is None or o.dtype == np.int64 for o in spec.owners)


def test_fractional_owners_are_a_wire_error() -> None:
    value = body()
    value["tensors"][1][4] = [[[0.5, 3, 1], [0, 1, 1]]]

    with pytest.raises(WireError):
        layout_from_bytes(squeeze(value))


@pytest.mark.parametrize(
    ("place", "junk"),
    [
        ((1,), [4, 3, 1]),  # more axes than owners
        ((1,), [-4, 3]),
        ((1,), [1 << 29, 3]),  # beyond MAX_AXIS
        ((4, 0), [[0, 3, 1]]),  # 3 owners of 4
        ((4, 0), [[0, 5, 1], [0, -1, 1]]),
        ((4, 0), [[1, 4, 1]]),  # unit 4 of 4
        ((4, 0), [[-2, 4, 1]]),
        ((2,), "float31"),
    ],
)
def test_faulty_tensor_is_a_wire_error(place: tuple[int, ...], junk: Any) -> None:
    value = body()
    holder = value["tensors"][0]
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = junk

    with pytest.raises(WireError):
        layout_from_bytes(squeeze(value))


@pytest.mark.parametrize(
    ("place", "junk"),
    [(2, "O"), (2, "f4,f4"), (2, "S5"), (2, "datetime64"), (5, [2]), (5, [-1])],
)
def test_dtype_or_axis_of_no_tensor_is_a_wire_error(place: int, junk: Any) -> None:
    value = body()
    value["tensors"][0][place] = junk

    with pytest.raises(WireError):
        layout_from_bytes(squeeze(value))


# --- Layouts that cannot be ---


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


@pytest.mark.parametrize("twice", ["tensor", "group"])
def test_a_name_that_comes_twice_is_refused(twice: str) -> None:
    value = body()
    if twice == "tensor":
        value["tensors"].append(value["tensors"][3])
    else:
        value["groups"] = [["fc1", 0, 2], ["fc1", 2, 2]]

    with pytest.raises(WireError):
        layout_from_bytes(squeeze(value))


# --- check_arrays ---


def test_arrays_of_the_model_pass() -> None:
    check_arrays(flat_layout(), random_arrays(flat_layout()), whose="initial arrays")


def test_all_faults_come_in_one_error() -> None:
    arrays = random_arrays(mlp_layout())
    arrays["fc3.bias"] = arrays.pop("fc2.bias")
    arrays["fc1.weight"] = arrays["fc1.weight"].T

    with pytest.raises(AutoFlipError, match="initial arrays do not") as caught:
        check_arrays(mlp_layout(), arrays, whose="initial arrays")

    assert "fc2.bias is missing" in str(caught.value)
    assert "fc3.bias is unknown" in str(caught.value)
    assert "fc1.weight has shape (3, 4) instead of (4, 3)" in str(caught.value)
