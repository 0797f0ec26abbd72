"""What a message weighs on the wire, worked out without serialising it.

Flower moves a content as objects: every record, array and chunk of an array is one,
named by a hash. An object is a head (its kind, the ids of its parts, its body's length)
and a body; beside it travels its own id. Bodies of records are protocol buffers. All
lengths follow from names and values, so that a reply with 100,000 names costs no more
than looking at each of them once.
"""

import json
from collections.abc import Iterable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

ID = 64
"""Length of Flower's object ids."""

CHUNK = 5 * 2**20
"""Bytes of an array that Flower moves as one object."""

_INT64_MAX = 2**63 - 1


def count_bytes(content: RecordDict) -> int:
    """Count what a message's content weighs on the wire.

    The serialised size of every nested object plus its id in the object tree, as
    Flower moves them. Objects that are equal, which Flower would send once, count each
    time: nothing is hashed. ``ValueError`` if a text in it is one that no wire carries,
    such as half a character.
    """
    total = sum(map(_count_record, content.values()))
    return total + _count_references("RecordDict", content)


def _count_record(record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
    if isinstance(record, ArrayRecord):
        total = sum(map(_count_array, record.values()))
        return total + _count_references("ArrayRecord", record)
    return _count_object(type(record).__name__, 0, _count_items(record))


def _count_object(kind: str, parts: int, body: int) -> int:
    """Count an object's id, head and body; the head names its parts."""
    ids = max(0, parts * (ID + len(",")) - len(","))
    return ID + len(f"{kind}  {body}\0") + ids + body


def _count_references(kind: str, names: Iterable[str]) -> int:
    """Count an object that only says which part has which name."""
    references = dict.fromkeys(names, "0" * ID)
    return _count_object(kind, len(references), len(json.dumps(references)))


def _count_array(array: Array) -> int:
    size = len(array.data)
    chunks = [min(CHUNK, size - start) for start in range(0, size, CHUNK)]
    about = {
        "dtype": array.dtype,
        "shape": array.shape,
        "stype": array.stype,
        "arraychunk_ids": list(range(len(chunks))),
    }
    total = _count_object("Array", len(chunks), len(json.dumps(about)))
    return total + sum(_count_object("ArrayChunk", 0, chunk) for chunk in chunks)


# --- Protocol buffers: a byte a tag, one for seven bits of a length or whole number ---


def _count_items(record: ConfigRecord | MetricRecord) -> int:
    total = 0
    for name, value in record.items():
        key = _field(len(name.encode())) if name else 0
        total += _field(key + _field(_count_value(value)))
    return total


def _field(size: int) -> int:
    """Count a field whose content has this size: tag, length, content."""
    return 1 + _varint(size) + size


def _count_value(value: Any) -> int:
    """Count the one field of a record's value."""
    if isinstance(value, list):
        return 1 + _field(_count_list(value))  # these fields' numbers take two bytes
    return _text(value) if isinstance(value, (str, bytes)) else 1 + _plain(value)


def _count_list(values: list[Any]) -> int:
    if values and isinstance(values[0], (str, bytes)):
        return sum(map(_text, values))
    large = isinstance(max(values, default=0.0), int) and max(values) > _INT64_MAX
    return _field(sum(map(_varint if large else _plain, values))) if values else 0


def _text(value: str | bytes) -> int:
    return _field(len(value.encode() if isinstance(value, str) else value))


def _plain(value: float) -> int:
    if isinstance(value, bool):
        return 1
    if isinstance(value, float):
        return 8
    if value > _INT64_MAX:  # as it is; all others alternate between the signs
        return _varint(value)
    return _varint(2 * value if value >= 0 else -2 * value - 1)


def _varint(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))
