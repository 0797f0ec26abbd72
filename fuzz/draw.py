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

ODD_NAMES = (
    *("", "x", "\x1b[2J\n[ERROR]", "\u202e", "\ud800", "[/x]", "$\\x$", "y" * 2000),
    *("</script><script>alert(1)</script>", "\" onload=alert(1) x='", "<!--", "round"),
)
"""Names that would do something, were they not only shown."""

_nested: Any = 0
for _ in range(900):
    _nested = [_nested]

ODD_JSON: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 2**22, 2**40, 2**64, 10**30, 0.5, 1e308, float("nan")),
    *("", "float32", "O", "f4,f4", "\n", "\ud800", [], [[]], {}, [0, 1, 1]),
    *(-5, 1e-320, -1e308, 10**400, float("inf"), [None], {"": {}}, _nested),
    *ODD_NAMES,
    *([-1, 4194304, 1], ["same", 0], ["array", "9"], ["dict", 1], ["set", ["list"]]),
)

DTYPES = ("float32", "float16", "float64", "uint8", "int64", "|O", "f4,f4", "", "<f4")
STYPES = ("numpy.ndarray", "torch", "", "pickle")
HEADERS = (
    *((b"'<f4'", b"'|O1'"), (b"'<f4'", b"'>f4'"), (b"False", b"True ")),
    *((b"'shape': (", b"'shape': (9999999"), (b"(", b"["), (b"{", b"\t")),
    (b"\x93NUMPY", b"PK\3\4\5\6"),
)
"""What NumPy's header says, and what it may say in its place."""


class Draw:
    """Take choices from bytes, in turn; zeros follow when they are used up."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        """Take the next bytes, fewer at the end."""
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int = 1) -> int:
        """Take the next ``size`` bytes as a number."""
        return int.from_bytes(self.take(size), "little")

    def pick(self, choices: Sequence[T]) -> T:
        """Take one of at most 256."""
        return choices[self.number() % len(choices)]

    def few(self) -> bytes:
        """Take up to 24 bytes."""
        return self.take(self.number() % 25)

    def rest(self) -> bytes:
        """Take all that is left."""
        return self.take(max(0, len(self.data) - self.at))


def change_bytes(draw: Draw, data: bytes) -> bytes:
    """Cut, lengthen, overwrite or flip a bit of bytes."""
    place = draw.number(2) % (len(data) + 1)
    match draw.number() % 4:
        case 0:
            return data[:place]
        case 1:
            return data[:place] + draw.few() + data[place:]
        case 2:
            given = draw.few()
            return data[:place] + given + data[place + len(given) :]
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
        case 3:
            data = data.replace(*draw.pick(HEADERS), 1)
        case 4:  # values, behind the header
            data = data[:128] + change_bytes(draw, data[128:])
        case _:
            data = change_bytes(draw, data)
    return Array(dtype, shape, stype, data)


def change_record(draw: Draw, record: Any) -> Any:
    """Drop, rename, swap, retype or damage values of a record, a few times."""
    values = dict(record)
    names = (*ODD_NAMES, "loss", "num-examples", "num_examples")
    for _ in range(1 + draw.number() % 3):
        if not values:
            break
        key, other = draw.pick(list(values)), draw.pick(list(values))
        match draw.number() % 7:
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
            case 5:
                values[draw.pick(names)] = draw.pick(ODD)
            case _:
                values[key] = draw.pick(ODD)
    changed = type(record)()
    for key, value in values.items():
        try:
            changed[key] = value
        except (TypeError, ValueError):  # Flower refuses what its records cannot hold
            continue
    return changed


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
            records[key] = change_record(draw, record)
    return RecordDict(records)


def change_json(draw: Draw, value: Any) -> Any:
    """Change one place of a JSON value: drop, repeat, swap or replace what is there."""
    if not isinstance(value, (list, dict)) or not value or draw.number() % 8 == 0:
        return draw.pick((*ODD_JSON, value, [value], draw.number(4)))
    value = value.copy()
    places: Any = list(value) if isinstance(value, dict) else range(len(value))
    key = draw.pick(places[:256])
    match draw.number() % 8:
        case 0:
            del value[key]
        case 1 if isinstance(value, list):
            value.insert(draw.pick(places[:256]), value[key])
        case 1:
            value[draw.pick(ODD_NAMES)] = value.pop(key)
        case 2:
            other = draw.pick(places[:256])
            value[key], value[other] = value[other], value[key]
        case _:
            value[key] = change_json(draw, value[key])
    return value
