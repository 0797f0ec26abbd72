"""Flower's records <-> NumPy."""

from functools import lru_cache
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib.format import dtype_to_descr, write_array_header_1_0
from numpy.typing import NDArray

from ..errors import WireError
from ..graph.layout import Arrays

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)

NUMPY = "numpy.ndarray"
"""What Flower calls the bytes of ``numpy.save``."""

_DTYPES = tuple(map(np.dtype, ("float32", "uint8", "float16", "float64")))
_HEAD = 128
"""Bytes before the values of a flat array, as NumPy saves it."""


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
    array as long as they are, or it is a ``WireError``. The record's dtype and shape
    are not asked; a NumPyClient's says nothing.
    """
    if len(arrays) != 1:
        raise WireError(
            f"expected one flat array, {len(arrays)} came; wrap the server's strategy "
            "in AutoFlip, and use autoflip_mod for dense clients only."
        )
    (array,) = arrays.values()
    if array.stype != NUMPY:  # as Flower reads it; so will the strategy
        raise WireError(f"the array cannot be read: its type is {array.stype[:40]!r}.")
    for dtype in _DTYPES:
        size = max(0, len(array.data) - _HEAD) // dtype.itemsize
        if (found := _view(array.data, dtype, (size,))) is not None:
            return found
    raise WireError(
        f"the array cannot be read: its {len(array.data)} bytes are no flat array of "
        f"{', '.join(map(str, _DTYPES))} in NumPy's format."
    )


def _view(
    data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[Any] | None:
    """View bytes as such an array; None unless they are what NumPy saves of it."""
    head = _npy_head(dtype, shape)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(data) != len(head) + size or not data.startswith(head):
        return None
    return np.ndarray(shape, dtype, data, len(head))


# Deep networks are hundreds of small arrays, the same ones in every round.
@lru_cache(maxsize=1024)
def _npy_head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Give what ``np.save`` writes before an array's values, row by row."""
    head = BytesIO()
    about = {"descr": dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    write_array_header_1_0(head, about)
    return head.getvalue()


def to_arrayrecord(arrays: Arrays) -> ArrayRecord:
    """Put named arrays into Flower's record, in one copy each, not in three."""
    record = ArrayRecord()
    for name, values in arrays.items():
        array = np.asarray(values, order="C")
        head = _npy_head(array.dtype, array.shape)
        data = b"".join((head, array.reshape(-1).view(np.uint8).data))
        record[name] = Array(str(array.dtype), array.shape, NUMPY, data)
    return record


def from_arrayrecord(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Give the named arrays of Flower's record, where possible as read-only views.

    For arrays of this process; what came over the wire is :func:`single_array`'s.
    ``WireError`` if the bytes are none that NumPy saves.
    """
    arrays = {}
    for name, array in record.items():
        try:
            view = None
            if array.dtype and array.stype == NUMPY:
                view = _view(array.data, np.dtype(array.dtype), tuple(array.shape))
            arrays[name] = array.numpy() if view is None else view
        except (TypeError, ValueError, EOFError) as error:
            raise WireError(f"an array cannot be read: {error}") from error
    return arrays
