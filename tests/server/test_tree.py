"""Values <-> JSON and arrays."""

import json
import random
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from hypothesis import given
from hypothesis import strategies as st
from models import mlp_layout

from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.server.persistence.tree import Tree, is_storable

LAYOUT = mlp_layout()
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


def through_json(value: Any) -> Any:
    writer = Tree(LAYOUT)
    text = json.dumps(writer.write(value))
    return Tree(LAYOUT, arrays=writer.arrays).read(json.loads(text))


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


def test_records_tensors_plans_and_layouts() -> None:
    keep = {g.name: np.arange(0, g.size, 2) for g in LAYOUT.groups}
    weights = np.float16([[1, 2], [3, 4]])
    value = [
        ArrayRecord({"w": Array(weights), "b": Array(np.zeros(0))}),
        MetricRecord({"loss": 0.5, "all": [1, 2]}),
        ConfigRecord({"lr": 0.1, "name": "x", "raw": b"\0", "on": True}),
        torch.arange(3),
        Plan(LAYOUT, keep),
        LAYOUT,
    ]

    arrays, metrics, config, tensor, plan, layout = through_json(value)

    assert list(arrays) == ["w", "b"]
    np.testing.assert_array_equal(arrays["w"].numpy(), weights)
    assert arrays["w"].dtype == "float16"
    assert (metrics, config) == (value[1], value[2])
    torch.testing.assert_close(tensor, torch.arange(3))
    np.testing.assert_array_equal(plan.alive, value[4].alive)
    assert plan.layout is LAYOUT
    assert layout is LAYOUT


@pytest.mark.parametrize(
    "bits", [np.random.MT19937, np.random.PCG64, np.random.Philox, np.random.SFC64]
)
def test_generators_go_on_where_they_were(bits: Any) -> None:
    one, other = np.random.Generator(bits(5)), random.Random(5)
    one.random(3)

    found, chance = through_json((one, other))

    assert found.random() == one.random()
    assert chance.random() == other.random()
    assert not is_storable([one], noisy=True)
    assert not is_storable({"a": other}, noisy=True)


def test_one_object_is_one_object_again() -> None:
    shared, array, record = [1], np.zeros(2), ArrayRecord({})

    found = through_json(
        {"a": shared, "b": (array, [shared], record), "c": array, "d": [1], "e": record}
    )

    assert found["a"] is found["b"][1][0]
    assert found["c"] is found["b"][0]
    assert found["e"] is found["b"][2]
    assert found["d"] is not found["a"]


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    "value",
    [
        *(object(), OrderedDict(), 1j, np.array(["a"]), np.array([1j]), LOOP),
        dense_plan(LAYOUT),  # whose layout is known to nobody here
    ],
)
def test_other_types_cannot_be_held(value: Any) -> None:
    assert is_storable([np.ones(3), (1, "x")])
    assert not is_storable([1, {"x": value}])
