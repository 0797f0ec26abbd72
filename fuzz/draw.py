"""Bytes of a fuzzer -> choices, and changes of real messages by such choices."""

from collections.abc import Sequence
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

T = TypeVar("T")

ODD: tuple[Any, ...] = (
    *(0, 1, -1, 255, 2**31, 2**53, 2**62, -(2**62), 0.0, -0.0, 0.5, 1e18, 1e308),
    *(5e-324, -1.0, float("nan"), float("inf"), -float("inf"), True, False),
    *("", "x", "float32", "float16", "int8", "explore", "budget", "macs:1e-9", "\n"),
    *("../../etc/passwd", "\x1b[31m", "\ud800", b"", b"\0", b"\x01\x00", b"PK\3\4"),
    *([], [1], [1.5, 2.5], ["a"], [b""], [True], [float("nan")]),
)
"""Values that records may hold, of every type, where others are expected."""

DTYPES = ("float32", "float16", "float64", "uint8", "int64", "|O", "f4,f4", "", "<f4")
STYPES = ("numpy.ndarray", "torch", "", "pickle")


class Draw:
    """Take choices from bytes, in turn; zeros follow when they are used up.

    Parameters
    ----------
    data : bytes
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, size: int = 1) -> int:
        """Take the next ``size`` bytes as a number."""
        part = self.data[self.at : self.at + size]
        self.at += size
        return int.from_bytes(part, "little")

    def pick(self, choices: Sequence[T]) -> T:
        """Take one of at most 256."""
        return choices[self.number() % len(choices)]

    def bytes(self, longest: int = 24) -> bytes:
        """Take a few bytes."""
        length = self.number() % (longest + 1)
        self.at += length
        return self.data[self.at - length : self.at]

    def rest(self) -> bytes:
        """Take all that is left."""
        start, self.at = self.at, len(self.data)
        return self.data[start:]


def change_bytes(draw: Draw, data: bytes) -> bytes:
    """Cut, lengthen, overwrite or flip a bit of bytes."""
    place = draw.number(2) % (len(data) + 1)
    match draw.number() % 5:
        case 0:
            return data[:place]
        case 1:
            return data[:place] + draw.bytes() + data[place:]
        case 2:
            given = draw.bytes()
            return data[:place] + given + data[place + len(given) :]
        case 3:
            return data + draw.bytes()
        case _:
            changed = bytearray(data or b"\0")
            changed[place % len(changed)] ^= 1 << draw.number() % 8
            return bytes(changed)


def change_array(draw: Draw, array: Array) -> Array:
    """Change what an array says of itself, or its data, header included."""
    dtype, shape, stype, data = array.dtype, array.shape, array.stype, array.data
    match draw.number() % 6:
        case 0:
            dtype = draw.pick(DTYPES)
        case 1:
            sizes = (0, 1, -1, 7, 2**40, 2**63, *shape)
            shape = tuple(draw.pick(sizes) for _ in range(draw.number() % 4))
        case 2:
            stype = draw.pick(STYPES)
        case 3:  # a header of equal length that says something else
            old, new = draw.pick(
                (
                    (b"'<f4'", b"'|O1'"),
                    (b"'<f4'", b"'>f4'"),
                    (b"False", b"True "),
                    (b"(", b"["),
                    (b"'shape': (", b"'shape': (9999999"),
                    (b"\x93NUMPY", b"PK\3\4\5\6"),
                    (b"{", b"\t"),
                )
            )
            data = data.replace(old, new, 1)
        case 4:  # values, behind the header
            data = data[:128] + change_bytes(draw, data[128:])
        case _:
            data = change_bytes(draw, data)
    return Array(dtype, shape, stype, data)


def change_record(draw: Draw, values: dict[str, Any]) -> dict[str, Any]:
    """Drop, rename, swap, retype or damage values of a record, a few times."""
    values = dict(values)
    for _ in range(1 + draw.number() % 3):
        if not values:
            break
        key, other = draw.pick(list(values)), draw.pick(list(values))
        match draw.number() % 6:
            case 0:
                del values[key]
            case 1:
                values[key], values[other] = values[other], values[key]
            case 2:
                values[key + "x"] = values.pop(key)
            case 3 if isinstance(values[key], bytes):
                values[key] = change_bytes(draw, values[key])
            case 4 if isinstance(values[key], (int, float)):
                values[key] = type(values[key])(draw.number(8) - 2**62)
            case _:
                values[key] = draw.pick(ODD)
    return values


def change_content(draw: Draw, content: RecordDict) -> RecordDict:
    """Change one record of a message's content, or what records there are."""
    records: dict[str, Any] = dict(content)
    key = draw.pick(list(records))
    record = records[key]
    match draw.number() % 16:
        case 0:
            del records[key]
        case 1:
            records[f"{key}2"] = record
        case 2:
            records[key] = draw.pick((ArrayRecord(), ConfigRecord(), MetricRecord()))
        case _ if isinstance(record, ArrayRecord) and record:
            name, array = next(iter(record.items()))
            arrays = {draw.pick((name, name, name, "?")): change_array(draw, array)}
            if draw.number() % 8 == 0:
                arrays["more"] = array
            records[key] = ArrayRecord(arrays)
        case _ if isinstance(record, (ConfigRecord, MetricRecord)):
            records[key] = rebuild(type(record), change_record(draw, dict(record)))
    return RecordDict(records)


def change_json(draw: Draw, value: Any) -> Any:
    """Change one place of a JSON value: drop, repeat, swap or replace what is there."""
    inside = list(value) if isinstance(value, (list, dict)) else []
    if not inside or draw.number() % 8 == 0:
        return draw.pick((*ODD_JSON, value, [value], draw.number(4)))
    value = dict(value) if isinstance(value, dict) else list(value)
    place = draw.number() % len(inside)
    key = inside[place] if isinstance(value, dict) else place
    match draw.number() % 8:
        case 0:
            del value[key]
        case 1 if isinstance(value, list):
            value.insert(draw.number() % len(inside), value[key])
        case 1:
            value[draw.pick(ODD_NAMES)] = value.pop(key)
        case 2:
            place = draw.number() % len(inside)
            other = inside[place] if isinstance(value, dict) else place
            value[key], value[other] = value[other], value[key]
        case _:
            value[key] = change_json(draw, value[key])
    return value


ODD_NAMES = (
    *("", "x", "\x1b[2J\n[ERROR]", "\u202e", "\ud800", "[/x]", "$\\x$", "y" * 2000),
    *("</script><script>alert(1)</script>", "\" onload=alert(1) x='", "<!--", "round"),
)
"""Names that would do something, were they not only shown."""


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


ODD_JSON: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 2**22, 2**40, 2**64, 10**30, 0.5, 1e308, float("nan")),
    *("", "float32", "O", "f4,f4", "\n", "\ud800", [], [[]], {}, [0, 1, 1]),
    *(-5, 1e-320, -1e308, 10**400, float("inf"), [None], {"": {}}, _nested(900)),
    *ODD_NAMES,
    *([-1, 4194304, 1], ["same", 0], ["array", "9"], ["dict", 1], ["set", ["list"]]),
)


def rebuild(kind: Any, values: dict[str, Any]) -> Any:
    """Make a record of what this kind may hold: Flower refuses the rest."""
    record = kind()
    for key, value in values.items():
        try:
            record[key] = value
        except (TypeError, ValueError):
            continue
    return record
