"""The bytes of a layout, read: from anybody, so everything is checked first."""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from math import inf, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError
from .layout import DTYPES, Described, Group, Layout, TensorSpec

MAX_LAYOUT_BYTES = 1 << 22
MAX_AXIS = 1 << 22
MAX_INDICES = 1 << 24
"""Of all axes that have owners together: 128 MB of them."""
MAX_UNITS = 1 << 20
MAX_VALUES = 1 << 33
MAX_AXES = 32
MAX_MACS = 1 << 53

_TEXT_COST = 40
_INDEX_COST = 48
"""Bytes of memory that a byte of JSON, or an index that has an owner, may take."""

_UNREADABLE = (
    zlib.error,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
)


def layout_from_bytes(
    data: bytes,
    room: float = inf,
    check: Callable[[Sequence[Described]], object] = len,
) -> Layout:
    """Decode :func:`.layout.layout_to_bytes`.

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
        groups = tuple(_group_from_json(row) for row in body["groups"])
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
    return TensorSpec(
        name,
        shape,
        dtype,
        bool(trainable),
        owners,
        input_axes,
        float(macs),
        bool(normalized),
        same_as,
    )


def _group_from_json(row: Sequence[Any]) -> Group:
    name, first, size = row
    return Group(_name(name), first, size)


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
