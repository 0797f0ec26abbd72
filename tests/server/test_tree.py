"""Values <-> JSON and arrays."""

import json
from collections import OrderedDict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_autoflip.server.tree import Kind, TreeReader, TreeWriter

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5)
)
KEYS = st.integers() | st.text(max_size=3) | st.tuples(st.booleans(), st.integers())
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.sets(KEYS, max_size=3)
    ),
    max_leaves=12,
)
FRACTION = Kind(
    "fraction",
    Fraction,
    lambda f: (f.numerator, f.denominator),
    lambda pair: Fraction(*pair),
)


def through_json(value: Any, *kinds: Kind) -> Any:
    writer = TreeWriter(kinds)
    text = json.dumps(writer.write(value))
    return TreeReader(writer.arrays, kinds).read(json.loads(text))


def types_of(value: Any) -> Any:
    if isinstance(value, dict):
        return [(types_of(k), types_of(v)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [types_of(item) for item in value]
    return type(value)


@given(VALUES)
def test_what_is_written_is_what_is_read(value: Any) -> None:
    found = through_json(value)

    assert found == value
    assert types_of(found) == types_of(value)


def test_arrays_and_scalars_keep_dtype_shape_and_order() -> None:
    value = {
        "a": np.arange(6, dtype=np.int16).reshape(2, 3),
        "s": (np.float32(0.1), np.bool_(True), np.zeros((), np.float64)),
        "nan": float("nan"),
        3: float("-inf"),
    }

    found = through_json(value)

    assert list(found) == list(value)
    np.testing.assert_array_equal(found["a"], value["a"])
    assert [type(x) for x in found["s"]] == [np.float32, np.bool_, np.ndarray]
    assert found["s"][0] == np.float32(0.1)
    assert np.isnan(found["nan"])
    assert found[3] == float("-inf")


def test_one_object_is_one_object_again() -> None:
    shared, array = [1], np.zeros(2)

    found = through_json({"a": shared, "b": (array, [shared]), "c": array, "d": [1]})

    assert found["a"] is found["b"][1][0]
    assert found["c"] is found["b"][0]
    assert found["d"] is not found["a"]


def test_further_kinds_share_too() -> None:
    half = Fraction(1, 2)

    found = through_json([half, Fraction(2, 3), half], FRACTION)

    assert found == [half, Fraction(2, 3), half]
    assert found[0] is found[2]


@pytest.mark.parametrize(
    "value", [object(), OrderedDict(), 1j, np.array(["a"]), np.array([1j])]
)
def test_other_types_are_refused_and_leave_no_trace(value: Any) -> None:
    writer, array = TreeWriter(), np.ones(3)

    with pytest.raises(TypeError):
        writer.write([array, [1], value])
    written = writer.write([array, array])

    found = TreeReader(writer.arrays).read(written)
    np.testing.assert_array_equal(found[0], array)
    assert found[0] is found[1]
    assert len(writer.arrays) == 1


def test_what_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)

    with pytest.raises(TypeError, match="holds itself"):
        TreeWriter().write(loop)
