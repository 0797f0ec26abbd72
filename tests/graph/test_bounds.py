"""What a few bytes claim is checked before memory or time is spent on it."""

import json
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from federation import EXAMPLE, TinyNet

from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.codec import decode_plan, encode_plan
from flwr_autoflip.graph.layout import (
    Layout,
    TensorSpec,
    layout_to_bytes,
)
from flwr_autoflip.graph.pack import pack, unpack_small
from flwr_autoflip.graph.parse import MAX_AXIS, layout_from_bytes
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.wire.compress import compress, decompress
from flwr_autoflip.wire.encoding import Encoding
from flwr_autoflip.wire.exploration import check_report, encode_report

LAYOUT = trace(TinyNet(), EXAMPLE)
Body = dict[str, Any]


def layout_with(change: Callable[[Body], Any]) -> bytes:
    body = json.loads(zlib.decompress(LAYOUT.encoded))
    change(body)
    return zlib.compress(json.dumps(body).encode())


def wide(count: int) -> Callable[[Body], Any]:
    """As many tensors, each of one axis with as many owners as an axis may have."""
    row = ["w", [MAX_AXIS], "float32", 1, [[[-1, 1, MAX_AXIS]]], [], 1.0, 0]
    return lambda body: body["tensors"].extend(
        [f"w{i}", *row[1:]] for i in range(count)
    )


def row(place: int, value: Any) -> Callable[[Body], Any]:
    return lambda body: body["tensors"][0].__setitem__(place, value)


def group(value: Any) -> Callable[[Body], Any]:
    return lambda body: body["groups"].append(value)


TOO_MUCH = {
    "owners": wide(1000),
    "units": group(["g", 14, 10**18]),
    "half a unit": group(["g", 14, 1.5]),
    "values": row(1, [MAX_AXIS, MAX_AXIS, MAX_AXIS, MAX_AXIS]),
    "axes": row(1, [1] * 40),
    "a negative axis": row(1, [-1, 1, 3, 3]),
    "MACs": row(6, 1e308),
    "MACs that are no number": row(6, float("nan")),
    "no dtype": row(2, None),
    "a structure": row(2, "f4,f4"),
    "half a flag": row(3, 0.5),
    "a name": row(0, 7),
    "a name for a terminal": row(0, "\x1b[31m"),
    "a name that no file holds": row(0, "\ud800"),
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_a_layout_is_checked_before_it_is_made(kind: str) -> None:
    data = layout_with(TOO_MUCH[kind])

    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            layout_from_bytes(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2e6


def test_as_large_as_a_layout_may_be_takes_little_time() -> None:
    data = layout_with(wide(3))

    start = time.process_time()
    found = layout_from_bytes(data)

    assert len(found.tensors) == len(LAYOUT.tensors) + 3
    assert time.process_time() - start < 5


def test_a_plan_has_one_form() -> None:
    plan = Plan(LAYOUT, {"conv": np.arange(3), "fc1": np.arange(4)})
    whole = encode_plan(plan)
    tensors = [t for t in LAYOUT.tensors if t.trainable]

    with pytest.raises(WireError, match="none does"):
        decode_plan(b"\1\1" + whole[2:] + bytes(len(tensors)), LAYOUT)
    size = plan.count(tensors[0].name)
    ones = np.packbits(np.ones(size, np.bool_)).tobytes()
    with pytest.raises(WireError, match="keeps all of it"):
        decode_plan(b"\1\1" + whole[2:] + b"\1" + ones, LAYOUT)


def test_packed_values_are_those_of_a_codec_and_dtype() -> None:
    packed = compress(np.zeros(1000, np.float32)).copy()

    for place, value in ((2, packed[2] & 0b11111 | 1 << 5), (3, 2)):
        changed = packed.copy()
        changed[place] = value
        with pytest.raises(WireError, match="Zstandard"):
            decompress(changed, 1000, "float32")
    with pytest.raises(WireError, match="their header says 4000"):
        decompress(packed, 2**60, "float32")  # no memory is taken


def half_model() -> Layout:
    specs = (
        TensorSpec("w", (3,), "float16", True, (None,)),
        TensorSpec("n", (), "int32", False, ()),
    )
    return Layout(specs, ())


def test_what_does_not_fit_into_the_models_dtypes_is_refused() -> None:
    layout = layout_from_bytes(layout_to_bytes(half_model()))
    plan = dense_plan(layout)

    fits = unpack_small(np.float32([65504, 0, 0, 2**31 - 200]), plan)
    assert np.isfinite(fits["w"]).all()
    for values in ([1e5, 0, 0, 0], [0, 0, 0, 2**31], [0, 0, 0, -(2.0**33)]):
        with pytest.raises(WireError, match="does not fit"):
            unpack_small(np.float32(values), plan)


@pytest.mark.parametrize("moved", [1e5, -1e5])
def test_an_update_beyond_the_models_dtype_is_refused(moved: float) -> None:
    layout = half_model()
    initial = {"w": np.zeros(3, np.float16), "n": np.int32(0)}
    final = {"w": np.full(3, moved), "n": np.int32(0)}
    values, scale = encode_report(initial, final, layout, "update")

    with pytest.raises(WireError, match="does not fit"):
        check_report(values, scale, layout, "update", initial)


@pytest.mark.parametrize("value", [2.0**61, -(2.0**61), 3.4e38])
def test_values_whose_squares_no_float_holds_are_refused(value: float) -> None:
    arrays = {name: np.zeros(spec.shape) for name, spec in LAYOUT.by_name.items()}
    plan = dense_plan(LAYOUT)
    values = pack(arrays, plan)
    values[5] = value

    with pytest.raises(WireError, match="beyond 2\\^60"):
        Encoding().decode(values, plan)
