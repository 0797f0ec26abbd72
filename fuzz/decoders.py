"""Targets that read bytes and arrays: what comes out passes all checks, or nothing.

Every function takes bytes and gives whether they were accepted. A ``WireError`` is a
refusal; any other exception, an oracle's ``AssertionError`` included, is a finding.
"""

import json
import zlib
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord

from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.codec import (
    decode_layout,
    decode_plan,
    encode_layout,
    encode_plan,
    layout_digest,
)
from flwr_autoflip.graph.pack import expand, pack, unpack_small
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.wire import (
    Instructions,
    Reply,
    append_gradients,
    encode_report,
    report_of,
    single_array,
)
from flwr_autoflip.wire.encoding import DTYPES, Encoding
from flwr_autoflip.wire.instructions import PAYLOADS
from flwr_autoflip.wire.report import check_report, split_gradients

from .draw import Draw, change_array, change_json
from .model import ARRAYS, DENSE, LAYOUT, PLANS, SMALL

LARGEST_MODEL = 2**33
ENCODINGS = tuple(map(Encoding, DTYPES))


def fuzz_layout(data: bytes) -> bool:
    """Read a layout: a changed one, JSON that the harness deflates, or any bytes."""
    draw = Draw(data)
    kind = draw.number()
    packed = draw.rest()
    if kind < 128:
        draw.at, body = 1, json.loads(zlib.decompress(encode_layout(LAYOUT)))
        for _ in range(draw.number() % 4):
            body = change_json(draw, body)
        packed = zlib.compress(json.dumps(body).encode(), 1)
    elif kind < 255:
        packed = zlib.compress(packed, 1)
    try:
        layout = decode_layout(packed)
    except WireError:
        return False
    assert layout_digest(decode_layout(encode_layout(layout))) == layout_digest(layout)
    assert 0 <= sum(spec.size for spec in layout.tensors) <= LARGEST_MODEL
    plan = dense_plan(layout)
    assert np.isfinite(plan.macs)
    assert plan.macs >= 0
    assert 0 <= plan.num_values <= LARGEST_MODEL
    return True


def seed_layout() -> list[bytes]:
    """Give a real layout's JSON, and its bytes."""
    text = zlib.decompress(encode_layout(LAYOUT))
    return [b"\0\0", b"\1\1\1\4\7", b"\x80" + text, b"\xff" + encode_layout(LAYOUT)]


def check_plan(plan: Plan) -> None:
    """Assert that a plan can be used: its values go out of and into dense arrays."""
    values = pack(ARRAYS, plan)
    assert 0 < values.size == plan.num_values <= DENSE.num_values
    for name, array in expand(ARRAYS, values, plan).items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def fuzz_plan(data: bytes) -> bool:
    """Read a plan: one form, so that its bytes come out again."""
    try:
        plan = decode_plan(data, LAYOUT)
    except WireError:
        return False
    assert encode_plan(plan) == data
    check_plan(plan)
    return True


def seed_plan() -> list[bytes]:
    """Give real plans."""
    return [encode_plan(plan) for plan in PLANS]


def fuzz_values(data: bytes) -> bool:
    """Read values in every encoding, from an array of any length and dtype."""
    draw = Draw(data)
    encoding, plan = draw.pick(ENCODINGS), draw.pick(PLANS)
    dtype = np.dtype(draw.pick(("<f4", "<f2", "u1", "<f8", ">f4")))
    body = draw.rest()
    array = np.frombuffer(body, dtype, len(body) // dtype.itemsize)
    try:
        values = encoding.decode(array, plan)
        small = unpack_small(values, plan)
    except WireError:
        return False
    assert values.shape == (plan.num_values,)
    assert values.dtype == np.float32
    assert np.isfinite(np.square(values)).all()
    for spec in plan.layout.tensors:
        assert small[spec.name].shape == plan.small_shape(spec.name)
        assert np.isfinite(small[spec.name]).all()
    return True


def seed_values() -> list[bytes]:
    """Give real values in every encoding."""
    seeds = []
    for number, encoding in enumerate(ENCODINGS):
        values = pack(ARRAYS, SMALL)
        array = encoding.encode(values, SMALL)
        kind = {"float32": 0, "uint8": 2}[array.dtype.name]
        seeds.append(bytes([number, 1, kind]) + array.tobytes())
    return seeds


def fuzz_array(data: bytes) -> bool:
    """Read one of Flower's arrays, whatever it says of itself."""
    draw = Draw(data)
    array = Array(pack(ARRAYS, SMALL).astype(draw.pick(("float32", "float16"))))
    for _ in range(draw.number() % 3):
        array = change_array(draw, array)
    if draw.number() % 4 == 1:
        array = Array(array.dtype, array.shape, array.stype, draw.rest())
    try:
        found = single_array(ArrayRecord({"values": array}))
    except WireError:
        return False
    assert type(found) is np.ndarray
    assert found.ndim == 1
    assert found.dtype.kind in "fiub"
    assert found.nbytes <= len(array.data)
    expected = np.load(BytesIO(array.data), allow_pickle=False)
    np.testing.assert_array_equal(found, expected, strict=True)
    return True


def seed_array() -> list[bytes]:
    """Give an array as it is, changed ones, and data alone."""
    whole = Array(pack(ARRAYS, SMALL)).data
    return [b"\0\0\0", b"\0\1\3\4", b"\0\2\0\1\1\2", b"\0\0\1" + whole]


def fuzz_report(data: bytes) -> bool:
    """Check what a node that explored sends."""
    draw = Draw(data)
    payload, plan = draw.pick(PAYLOADS["explore"]), draw.pick(PLANS)
    scale: object = float(np.frombuffer(draw.data[2:10].ljust(8, b"\0"), "<f8")[0])
    draw.at = 10
    if draw.number() == 255:
        scale = draw.pick((None, 1, "1", True))
    body = draw.rest()
    values = np.frombuffer(body, "<f2", len(body) // 2)
    try:
        norm = check_report(values, scale, plan, payload)
    except WireError:
        return False
    metadata = {"autoflip-scale": scale}
    asked = Instructions("explore", plan, pack(ARRAYS, plan), payload=payload)
    reply = Reply(np.zeros(0), 1, {}, metadata, sizes=values)
    moved = [part.ravel() for part in report_of(reply, asked).values()]
    assert (np.concatenate(moved) >= 0).all()
    squares = np.concatenate(moved).sum(dtype=np.float64)
    np.testing.assert_allclose(np.sqrt(squares), norm, rtol=1e-3, atol=1e-20)
    return True


def seed_report() -> list[bytes]:
    """Give real reports of every payload and plan."""
    seeds = []
    for number, plan in enumerate(PLANS):
        start = pack(ARRAYS, plan)
        for kind, payload in enumerate(PAYLOADS["explore"]):
            steps = 0.01 * np.arange(start.size, dtype=np.float32)
            values, scale = encode_report(start, start + steps, plan, payload)
            head = bytes([kind, number]) + np.float64(scale).tobytes() + b"\0"
            seeds.append(head + values.tobytes())
    return seeds


def fuzz_gradients(data: bytes) -> bool:
    """Part a reply into values and sizes of gradients."""
    draw = Draw(data)
    plan = draw.pick(PLANS)
    dtype = np.dtype(draw.pick(("<f4", "<f2")))
    body = draw.rest()
    array = np.frombuffer(body, dtype, len(body) // dtype.itemsize)
    try:
        values, sizes = split_gradients(array, plan)
    except WireError:
        return False
    assert values.size == plan.num_values == array.size - sizes.size
    assert np.isfinite(np.square(sizes)).all()
    assert (sizes >= 0).all()
    assert np.isfinite(values).all()
    return True


def seed_gradients() -> list[bytes]:
    """Give real gradients."""
    return [
        bytes([i, 0]) + append_gradients(pack(ARRAYS, plan), {}, plan).tobytes()
        for i, plan in enumerate(PLANS)
    ]
