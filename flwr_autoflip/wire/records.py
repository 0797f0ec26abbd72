"""Flower's records <-> NumPy."""

from functools import lru_cache
from io import BytesIO
from typing import Any, Literal, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib.format import (
    dtype_to_descr,
    read_array_header_1_0,
    read_magic,
    write_array_header_1_0,
)
from numpy.typing import NDArray

from ..errors import WireError
from ..graph.layout import Arrays

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)

NUMPY = "numpy.ndarray"
"""What Flower calls the bytes of ``numpy.save``."""

_DTYPES = ("float32", "uint8", "float16", "float64")
_HEAD = 128
"""Bytes before the values of a flat array, as NumPy saves it."""

_HEAD_LENGTH = slice(8, 10)
"""Where NumPy's format, version 1, says how long the rest of its head is."""


def records_of(content: RecordDict, kind: type[R]) -> dict[str, R]:
    """Give a content's records of a kind by name.

    ``content.array_records`` and its like give the same, each time in a new reference
    cycle that keeps the content's arrays in memory until a garbage collection.
    """
    return {
        name: record for name, record in content.items() if isinstance(record, kind)
    }


def only_record(content: RecordDict, kind: type[R]) -> R:
    """Give a content's one record of a kind; raise ``WireError`` for none or more."""
    found = list(records_of(content, kind).values())
    if len(found) != 1:
        raise WireError(f"expected one {kind.__name__}, {len(found)} came.")
    return found[0]


def single_array(arrays: ArrayRecord) -> NDArray[Any]:
    """Give the one flat array of a record, without a copy; it cannot be written to.

    Nothing of its bytes is parsed: they have to be what ``np.save`` makes of a flat
    array as long as they are. The record's dtype and shape are not asked; a
    NumPyClient's says nothing.

    Raises
    ------
    WireError
        If there is not exactly one, or its bytes are anything else.
    """
    check_single(len(arrays))
    array = next(iter(arrays.values()))
    if array.stype != NUMPY:  # as Flower reads it; so will the strategy
        raise WireError(f"the array cannot be read: its type is {array.stype[:40]!r}.")
    for dtype in map(np.dtype, _DTYPES):
        size = max(0, len(array.data) - _HEAD) // dtype.itemsize
        head = _npy_head(dtype, (size,))
        if (
            array.data.startswith(head)
            and len(array.data) == _HEAD + size * dtype.itemsize
        ):
            return np.frombuffer(array.data, dtype, offset=_HEAD)
    raise WireError(
        f"the array cannot be read: its {len(array.data)} bytes are no flat array of "
        f"{', '.join(_DTYPES)} in NumPy's format."
    )


# Deep networks are hundreds of small arrays, the same ones in every round.
@lru_cache(maxsize=1024)
def _npy_head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Give what ``np.save`` writes before an array's values, row by row."""
    head = BytesIO()
    about = {"descr": dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    write_array_header_1_0(head, about)
    return head.getvalue()


@lru_cache(maxsize=1024)
def _read_npy_head(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Give shape, whether it goes column by column, and dtype."""
    file = BytesIO(head)
    if read_magic(file) != (1, 0):
        raise ValueError("it is of another version.")
    shape, by_column, dtype = read_array_header_1_0(file)
    return shape, by_column, dtype


def check_single(count: int) -> None:
    """Raise ``WireError`` unless one array came."""
    if count != 1:
        raise WireError(
            f"expected one flat array, {count} came; wrap the server's strategy in "
            "AutoFlip, and use autoflip_mod for dense clients only."
        )


def as_numpy(array: Array) -> NDArray[Any]:
    """View Flower's array as NumPy's; its own ``numpy()`` copies.

    For arrays of this process; what came over the wire is :func:`single_array`'s.

    Parameters
    ----------
    array : Array

    Returns
    -------
    ndarray
        Read-only, on the array's own bytes.

    Raises
    ------
    WireError
        If the bytes are not those of one array of numbers, no more and no less.
    """
    try:
        if array.stype != NUMPY:
            raise ValueError(f"it is {array.stype!r}.")
        start = _HEAD_LENGTH.stop + int.from_bytes(array.data[_HEAD_LENGTH], "little")
        shape, by_column, dtype = _read_npy_head(array.data[:start])
        if dtype.kind not in "biufc":
            raise ValueError(f"dtype {dtype} is not one of numbers.")
        order: Literal["C", "F"] = "F" if by_column else "C"
        view = np.ndarray(shape, dtype, array.data, start, order=order)
    except (TypeError, ValueError, EOFError, OverflowError) as error:
        raise WireError(f"an array cannot be read: {error}") from error
    if start + view.nbytes != len(array.data):
        raise WireError("an array cannot be read: bytes follow it.")
    return view


def as_array(array: NDArray[Any]) -> Array:
    """Put an array into Flower's, in one copy; ``Array(array)`` makes three."""
    array = np.asarray(array, order="C")
    head = _npy_head(array.dtype, array.shape)
    data = b"".join((head, array.reshape(-1).view(np.uint8).data))
    return Array(str(array.dtype), array.shape, NUMPY, data)


def to_arrayrecord(arrays: Arrays) -> ArrayRecord:
    """Put named arrays into Flower's record."""
    return ArrayRecord({name: as_array(array) for name, array in arrays.items()})


def from_arrayrecord(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """View the named arrays of Flower's record, read-only."""
    return {name: as_numpy(array) for name, array in record.items()}
