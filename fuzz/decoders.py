"""Targets that read bytes and arrays: what comes out passes all checks, or nothing."""

import json
import zlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord

from flwr_autoflip.graph.codec import (
    decode_layout,
    decode_plan,
    encode_layout,
    encode_plan,
    layout_digest,
)
from flwr_autoflip.graph.pack import expand, pack, unpack_small
from flwr_autoflip.graph.plan import dense_plan
from flwr_autoflip.wire import (
    Instructions,
    Reply,
    encode_report,
    report_of,
    single_array,
)
from flwr_autoflip.wire.encoding import DTYPES, Encoding
from flwr_autoflip.wire.instructions import PAYLOADS
from flwr_autoflip.wire.report import check_report

from .draw import Draw, change_array, change_json
from .harness import target
from .model import ARRAYS, DENSE, LAYOUT, PLANS, SMALL

LARGEST_MODEL = 2**33
ENCODINGS = tuple(map(Encoding, DTYPES))
VALUES = [pack(ARRAYS, plan) for plan in PLANS]
TEXT = zlib.decompress(encode_layout(LAYOUT))


def changed_layout(draw: Draw) -> bytes:
    """Change a real layout's JSON in up to three places."""
    body = json.loads(TEXT)
    for _ in range(draw.number() % 4):
        body = change_json(draw, body)
    return zlib.compress(json.dumps(body).encode(), 1)


def flat(draw: Draw, dtypes: tuple[str, ...]) -> np.ndarray:
    """Take all that is left as an array of one of these dtypes."""
    dtype, body = np.dtype(draw.pick(dtypes)), draw.rest()
    return np.frombuffer(body, dtype, len(body) // dtype.itemsize)


@target([b"\0\0", b"\1\1\1\4\7", b"\x80" + TEXT, b"\xff" + encode_layout(LAYOUT)])
def layout(data: bytes) -> Iterator[bool]:
    """Read a layout: a changed one, JSON that the harness deflates, or any bytes."""
    draw = Draw(data)
    kind = draw.number()
    if kind < 128:
        packed = changed_layout(draw)
    else:
        packed = zlib.compress(draw.rest(), 1) if kind < 255 else draw.rest()
    found = decode_layout(packed)
    yield True
    again = decode_layout(encode_layout(found))
    assert layout_digest(again) == layout_digest(found)
    assert 0 <= sum(spec.size for spec in found.tensors) <= LARGEST_MODEL
    whole = dense_plan(found)
    assert 0 <= whole.macs < np.inf
    assert 0 <= whole.num_values <= LARGEST_MODEL


@target([encode_plan(plan) for plan in PLANS], 64)
def plan(data: bytes) -> Iterator[bool]:
    """Read a plan: one form, so that its bytes come out again; and it can be used."""
    found = decode_plan(data, LAYOUT)
    yield True
    assert encode_plan(found) == data
    values = pack(ARRAYS, found)
    assert 0 < values.size == found.num_values <= DENSE.num_values
    for name, array in expand(ARRAYS, values, found).items():
        np.testing.assert_array_equal(array, ARRAYS[name])


@target(
    [
        bytes([number, 1, 2 * bool(number)]) + one.encode(VALUES[1], SMALL).tobytes()
        for number, one in enumerate(ENCODINGS)
    ],
    1024,
)
def values(data: bytes) -> Iterator[bool]:
    """Read values in every encoding, from an array of any length and dtype."""
    draw = Draw(data)
    encoding, asked = draw.pick(ENCODINGS), draw.pick(PLANS)
    found = encoding.decode(flat(draw, ("<f4", "<f2", "u1", "<f8", ">f4")), asked)
    small = unpack_small(found, asked)
    yield True
    assert found.shape == (asked.num_values,)
    assert found.dtype == np.float32
    assert np.isfinite(np.square(found)).all()
    for spec in LAYOUT.tensors:
        assert small[spec.name].shape == asked.small_shape(spec.name)
        assert np.isfinite(small[spec.name]).all()


WHOLE = Array(VALUES[1]).data


@target([b"\0\0\0", b"\0\1\3\4", b"\0\2\0\1\1\2", b"\0\0\1" + WHOLE], 1024)
def array(data: bytes) -> Iterator[bool]:
    """Read one of Flower's arrays, whatever it says of itself."""
    draw = Draw(data)
    sent = Array(VALUES[1].astype(draw.pick(("float32", "float16"))))
    for _ in range(draw.number() % 3):
        sent = change_array(draw, sent)
    if draw.number() % 4 == 1:
        sent = Array(sent.dtype, sent.shape, sent.stype, draw.rest())
    found = single_array(ArrayRecord({"values": sent}))
    yield True
    assert found.ndim == 1
    assert found.nbytes <= len(sent.data)
    expected = np.load(BytesIO(sent.data), allow_pickle=False)
    np.testing.assert_array_equal(found, expected, strict=True)


def real_report(number: int, kind: int) -> bytes:
    """Give a real report of one payload and plan."""
    start = VALUES[number]
    trained = start + 0.01 * np.arange(start.size, dtype=np.float32)
    payload = PAYLOADS["explore"][kind]
    found, scale = encode_report(start, trained, PLANS[number], payload)
    head = bytes([kind, number]) + np.float64(scale).tobytes() + b"\0\0"
    return head + found.tobytes()


@target([real_report(number, kind) for number in range(3) for kind in (0, 1)], 1024)
def report(data: bytes) -> Iterator[bool]:
    """Check what a node that explored sends."""
    draw = Draw(data)
    payload, number = draw.pick(PAYLOADS["explore"]), draw.number() % 3
    scale: object = float(np.frombuffer(draw.take(8).ljust(8, b"\0"), "<f8")[0])
    if draw.number() == 255:
        scale = draw.pick((None, 1, "1", True))
    sizes = flat(draw, ("<f2",))
    norm = check_report(sizes, scale, PLANS[number], payload)
    yield True
    asked = Instructions("explore", PLANS[number], VALUES[number], payload=payload)
    reply = Reply(np.zeros(0), 1, {}, {"autoflip-scale": scale}, sizes=sizes)
    moved = np.concatenate([x.ravel() for x in report_of(reply, asked).values()])
    assert (moved >= 0).all()
    length = np.sqrt(moved.sum(dtype=np.float64))
    np.testing.assert_allclose(length, norm, rtol=1e-3, atol=1e-20)
