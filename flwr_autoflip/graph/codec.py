"""Plans and layouts <-> bytes, version 1.

A plan's bytes speak of a layout that both sides hold. Nothing else, in this order:

=====================  ==============================================================
bytes                  meaning
=====================  ==============================================================
1                      version, 1
1                      1 if element bitmaps follow, else 0
varies                 one bit a unit of the model, 1 = kept; zeros to a whole byte
per trainable tensor   only if element bitmaps follow, in the layout's order: one byte
                       0 (all kept) or 1, and after a 1 one bit an element of the
                       *small* tensor, C order; zeros to a whole byte
=====================  ==============================================================

A layout's bytes are deflated JSON: ``"tensors"``, of which each is the list of its
:class:`.layout.TensorSpec` fields (``same_as`` only where it has one); ``"groups"``,
each name, first unit and size; and ``"batch_axis"`` unless it is 0. Owners of an axis
are null or runs ``[first, count, repeat]``: 0 0 1 1 2 2 is ``[[0, 3, 2]]``.

What comes from a stranger is checked before memory is taken for it.
"""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import inf, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import KeepError, WireError
from .layout import DTYPES, Described, Group, Layout, TensorSpec
from .plan import Plan

VERSION = 1
DIGEST_BYTES = 16

MAX_LAYOUT_BYTES = 1 << 22
MAX_AXIS = 1 << 22
MAX_INDICES = 1 << 24
"""Of all axes that have owners together: 128 MB of them."""
MAX_UNITS = 1 << 20
MAX_VALUES = 1 << 33
MAX_AXES = 32
MAX_MACS = 1 << 53

# --- Plans ---


@lru_cache(maxsize=16)  # by identity; one plan is encoded for every node and reply
def encode_plan(plan: Plan) -> bytes:
    """Write a plan as bytes; see the module's table."""
    parts = [bytes([VERSION, bool(plan.small_mask)]), _to_bits(plan.alive)]
    for spec in plan.layout.tensors if plan.small_mask else ():
        if spec.trainable:
            mask = plan.small_mask.get(spec.name)
            parts.append(b"\0" if mask is None else b"\1" + _to_bits(mask))
    return b"".join(parts)


def plan_digest(data: bytes, layout: Layout) -> bytes:
    """Sixteen bytes that name an encoded plan and the layout that it speaks of."""
    return blake2b(layout_digest(layout) + data, digest_size=DIGEST_BYTES).digest()


def decode_plan(data: bytes, layout: Layout) -> Plan:
    """Read :func:`encode_plan`, of the layout that both sides hold.

    Raises
    ------
    WireError
        On another version, missing or surplus bytes, or a group without units.
    """
    if len(data) < 2 or data[0] != VERSION:
        raise WireError(
            f"plan: expected version {VERSION} and at least 2 bytes, got "
            f"{data[:1].hex() or 'nothing'} and {len(data)} bytes; install the same "
            "flwr-autoflip on both sides."
        )
    if data[1] > 1:
        raise WireError(f"plan: the element flag must be 0 or 1, got {data[1]}.")
    # A view: cutting bytes off their front would copy the rest every time.
    alive, rest = _take_bits(memoryview(data)[2:], (layout.num_units,))
    keep = {
        g.name: np.flatnonzero(alive[g.first : g.first + g.size]) for g in layout.groups
    }
    try:
        plan = Plan(layout, keep)
    except KeepError as error:
        raise WireError(f"plan: {error}") from error
    masks: dict[str, NDArray[np.bool_]] = {}
    if data[1]:
        masks, rest = _decode_masks(rest, plan)
        if not masks:
            raise WireError("plan: element bitmaps are said to follow; none does.")
    if rest:
        raise WireError(f"plan: {len(rest)} bytes too many.")
    return Plan(layout, keep, masks) if masks else plan


def _decode_masks(
    data: memoryview, plan: Plan
) -> tuple[dict[str, NDArray[np.bool_]], memoryview]:
    masks: dict[str, NDArray[np.bool_]] = {}
    for spec in plan.layout.tensors:
        if not spec.trainable:
            continue
        if bytes(data[:1]) not in (b"\0", b"\1"):
            raise WireError(f"plan: tensor {spec.name!r} has no element flag.")
        flag, data = data[0], data[1:]
        if flag:
            small, data = _take_bits(data, plan.small_shape(spec.name))
            if small.all():  # a plan has one form, so that its bytes name it
                raise WireError(f"plan: the bitmap of {spec.name!r} keeps all of it.")
            masks[spec.name] = np.zeros(spec.shape, np.bool_)
            plan.put(spec.name, masks[spec.name], small)
    return masks, data


def _to_bits(choice: NDArray[np.bool_]) -> bytes:
    """Write one bit an element, C order, padded to whole bytes."""
    return np.packbits(choice).tobytes()


def _take_bits(
    data: memoryview, shape: tuple[int, ...]
) -> tuple[NDArray[np.bool_], memoryview]:
    """Read :func:`_to_bits`; give what follows, too."""
    count = prod(shape)
    length = (count + 7) // 8
    if len(data) < length:
        raise WireError(f"plan: {length} bytes of bits expected, {len(data)} came.")
    bits = np.unpackbits(np.frombuffer(data[:length], np.uint8))
    if bits[count:].any():
        raise WireError("plan: padding bits must be 0.")
    return bits[:count].astype(np.bool_).reshape(shape), data[length:]


# --- Layouts ---


@lru_cache(maxsize=16)  # by identity, as plans
def encode_layout(layout: Layout) -> bytes:
    """Write a layout as bytes: .3 kB for a small CNN, 4 kB for EfficientNet-B3."""
    return zlib.compress(_to_json(layout), 9)


@lru_cache(maxsize=16)
def layout_digest(layout: Layout) -> bytes:
    """Sixteen bytes that name a layout: BLAKE2b of its JSON."""
    return blake2b(_to_json(layout), digest_size=DIGEST_BYTES).digest()


def _to_json(layout: Layout) -> bytes:
    body: dict[str, Any] = {
        "tensors": [_tensor_to_json(spec) for spec in layout.tensors],
        "groups": [[g.name, g.first, g.size] for g in layout.groups],
    }
    if layout.batch_axis:
        body["batch_axis"] = layout.batch_axis
    return json.dumps(body, separators=(",", ":")).encode()


def _tensor_to_json(spec: TensorSpec) -> list[Any]:
    runs = [None if o is None else _to_runs(o) for o in spec.owners]
    row = [
        *(spec.name, list(spec.shape), spec.dtype, int(spec.trainable), runs),
        *(list(spec.input_axes), spec.macs_per_weight, int(spec.normalized)),
    ]
    return [*row, spec.same_as] if spec.same_as else row


def _to_runs(owners: NDArray[np.int64]) -> list[list[int]]:
    edges = np.flatnonzero(np.diff(owners, prepend=owners[0] - 1))
    lengths = np.diff(np.append(edges, len(owners)))
    runs: list[list[int]] = []
    for at, length in zip(edges, lengths, strict=True):  # lists take 40 bytes each
        owner, repeat = int(owners[at]), int(length)
        last = runs[-1] if runs else None
        if last and last[2] == repeat and owner == last[0] + last[1] != 0:
            last[1] += 1
        else:
            runs.append([owner, 1, repeat])
    return runs


_TEXT_COST = 40
_INDEX_COST = 48
"""Bytes of memory that a byte of JSON, or an index that has an owner, may take."""

_UNREADABLE = (
    *(zlib.error, KeyError, TypeError, ValueError, OverflowError, RecursionError),
)


def decode_layout(
    data: bytes,
    room: float = inf,
    check: Callable[[Sequence[Described]], object] = len,
) -> Layout:
    """Read :func:`encode_layout`.

    Parameters
    ----------
    data : bytes
    room : float (default: infinite)
        Bytes of memory that reading may take; the ``MAX_`` bounds hold anyway.
    check : callable (default: none)
        Raises if these tensors are not the ones expected; called before any of them is
        made.

    Returns
    -------
    Layout

    Raises
    ------
    WireError
        If the bytes are not a layout, or one larger than 4 MiB, or of a model beyond
        the bounds; those are checked before memory is taken.
    """
    longest = int(min(MAX_LAYOUT_BYTES, room / _TEXT_COST))
    try:
        inflater = zlib.decompressobj()
        text = inflater.decompress(data, longest)
        surplus = inflater.unconsumed_tail or inflater.unused_data
        if surplus or not inflater.eof:
            raise WireError(
                "the layout is truncated, followed by more, or over "
                f"{longest / (1 << 20):.3g} MiB."
            )
        body = json.loads(text)
        _check_bounds(body, int(min(MAX_INDICES, room / _INDEX_COST)))
        check([_described(row) for row in body["tensors"]])
        groups = tuple(Group(_name(n), *numbers) for n, *numbers in body["groups"])
        (axis,) = _whole([body.get("batch_axis", 0)])
        if not 0 <= axis < MAX_AXES:
            raise WireError(f"no batch lies along axis {axis}.")
        return Layout(tuple(map(_tensor_from_json, body["tensors"])), groups, axis)
    except WireError:
        raise
    except _UNREADABLE as error:
        raise WireError(f"the layout's bytes cannot be read: {error}") from error


def _check_bounds(body: Mapping[str, Any], most_indices: int) -> None:
    """Add up what a layout's tensors would take, before any of it is made."""
    values = indices = 0
    for name, shape, _, _, owners, *_ in body["tensors"]:
        if len(shape) > MAX_AXES or any(not 0 <= n <= MAX_AXIS for n in _whole(shape)):
            raise WireError(f"tensor {name!r}: no model has axes of {shape[:8]}.")
        values += prod(shape)
        owned = zip(owners, shape, strict=True)
        indices += sum(n for owner, n in owned if owner is not None)
    units = 0
    for _, first, size in body["groups"]:
        units += _whole([first, size])[1]
    if units > MAX_UNITS or values > MAX_VALUES or indices > most_indices:
        raise WireError(
            f"the layout has {units} units, {values} values and {indices} indices; up "
            f"to {MAX_UNITS}, {MAX_VALUES} and {most_indices} are taken."
        )


def _described(row: Sequence[Any]) -> Described:
    name, shape, dtype = row[:3]
    if dtype not in DTYPES:
        raise WireError(f"tensor {name!r}: no tensor has {dtype!r}.")
    return _name(name), _whole(shape), dtype, _name(row[8]) if len(row) > 8 else ""


def _tensor_from_json(row: Sequence[Any]) -> TensorSpec:
    name, shape, dtype, same_as = _described(row)
    _, _, _, trainable, runs, input_axes, macs, normalized, *rest = row
    input_axes = _whole(input_axes)
    if len(rest) > 1 or not set(input_axes) <= set(range(len(shape))):
        raise WireError(f"tensor {name!r}: no tensor has {input_axes} and {rest}.")
    if not set(_whole([trainable, normalized])) <= {0, 1} or not 0 <= macs <= MAX_MACS:
        raise WireError(f"tensor {name!r}: expected two flags and MACs, got {row[3:]}.")
    owners = tuple(
        None if r is None else _from_runs(r, length)
        for r, length in zip(runs, shape, strict=True)
    )
    fields = bool(trainable), owners, input_axes, float(macs), bool(normalized)
    return TensorSpec(name, shape, dtype, *fields, same_as)


def _name(name: Any) -> str:
    """Read a name that can be shown and stored."""
    if type(name) is not str or not name.isprintable():
        raise WireError(f"expected a name, got {str(name)[:40]!r}.")
    return name


def _whole(numbers: Sequence[Any]) -> tuple[int, ...]:
    """Read integers; anything else is an error, not rounded."""
    if any(type(number) is not int for number in numbers):
        raise WireError(f"expected integers, got {list(numbers)[:8]}.")
    return tuple(numbers)


def _from_runs(runs: Sequence[Sequence[int]], length: int) -> NDArray[np.int64]:
    total = 0
    for _, count, repeat in map(_whole, runs):
        total += count * repeat if count > 0 and repeat > 0 else length + 1
    if total != length:
        raise WireError(f"the runs of an axis must cover its {length} indices.")
    owners, end = np.empty(length, np.int64), 0
    for first, count, repeat in runs:
        start, end = end, end + count * repeat
        run = owners[start:end].reshape(count, repeat)
        run[:] = np.arange(first, first + count)[:, None]
    return owners
