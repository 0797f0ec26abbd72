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
from flwr_autoflip.graph.plan_change import decode_change, encode_change
from flwr_autoflip.wire import single_array
from flwr_autoflip.wire.encoding import DTYPES, Encoding
from flwr_autoflip.wire.exploration import (
    PAYLOADS,
    check_report,
    decode_report,
    encode_report,
)
from flwr_autoflip.wire.probe import append_probe, probe_size, split_probe

from .draw import Draw, change_array, change_json
from .model import ARRAYS, DENSE, LAYOUT, MASKED, PLANS, SMALL

LARGEST_MODEL = 2**33
ENCODINGS = tuple(Encoding(d, c) for d in DTYPES for c in (False, True))


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


def fuzz_change(data: bytes) -> bool:
    """Read a change of a plan; single weights' bits are deflated by the harness."""
    draw = Draw(data)
    before, kind, body = draw.pick(PLANS), draw.number(), draw.rest()
    if kind == 1:
        body = zlib.compress(body, 1)
    try:
        after = decode_change(bytes([kind]) + body, before)
    except WireError:
        return False
    check_plan(after)
    again = encode_change(before, after)
    assert again is not None
    assert encode_plan(decode_change(again, before)) == encode_plan(after)
    return True


def seed_change() -> list[bytes]:
    """Give real changes, of units and of single weights."""
    units, weights = encode_change(DENSE, SMALL), encode_change(SMALL, MASKED)
    assert units is not None
    assert weights is not None
    return [b"\0" + units, b"\1\1" + zlib.decompress(weights[1:])]


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
    """Check an explorer's report, then read it."""
    draw = Draw(data)
    payload = draw.pick(PAYLOADS)
    scale: object = float(np.frombuffer(draw.data[1:9].ljust(8, b"\0"), "<f8")[0])
    draw.at = 9
    if draw.number() == 255:
        scale = draw.pick((None, 1, "1", True))
    body = draw.rest()
    dtype = np.dtype("<f4" if payload == "weights" else "<f2")
    values = np.frombuffer(body, dtype, len(body) // dtype.itemsize)
    try:
        check_report(values, scale, LAYOUT, payload, ARRAYS)
    except WireError:
        return False
    report, final = decode_report(values, scale, LAYOUT, payload, ARRAYS)
    for moved in report.values():
        assert np.isfinite(moved).all()
        assert (moved >= 0).all()
    for spec in LAYOUT.tensors if final else ():
        assert final[spec.name].shape == spec.shape
        assert final[spec.name].dtype.name == spec.dtype
        assert np.isfinite(final[spec.name]).all()
    return True


def seed_report() -> list[bytes]:
    """Give real reports of every payload."""
    final = {n: a + (a.dtype.kind == "f") * 0.01 for n, a in ARRAYS.items()}
    final = {name: a.astype(ARRAYS[name].dtype) for name, a in final.items()}
    seeds = []
    for number, payload in enumerate(PAYLOADS):
        values, scale = encode_report(ARRAYS, final, LAYOUT, payload)
        head = bytes([number]) + np.float64(scale).tobytes() + b"\0"
        seeds.append(head + values.tobytes())
    return seeds


def fuzz_probe(data: bytes) -> bool:
    """Part a reply into values and squared gradients."""
    draw = Draw(data)
    plan = draw.pick(PLANS)
    dtype = np.dtype(draw.pick(("<f4", "<f2")))
    body = draw.rest()
    array = np.frombuffer(body, dtype, len(body) // dtype.itemsize)
    try:
        values, report = split_probe(array, plan)
    except WireError:
        return False
    assert values.size + probe_size(plan) == array.size
    assert np.isfinite(values).all()
    for name, squares in report.items():
        assert squares.shape == LAYOUT.by_name[name].shape
        assert np.isfinite(squares).all()
        assert (squares >= 0).all()
    return True


def seed_probe() -> list[bytes]:
    """Give real probes."""
    plans: list[tuple[int, Plan]] = list(enumerate(PLANS))
    return [
        bytes([i, 0]) + append_probe(pack(ARRAYS, plan), {}, plan).tobytes()
        for i, plan in plans
    ]
