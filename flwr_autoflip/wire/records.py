"""Flower's records <-> NumPy, and what a record weighs."""

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

from ..core.errors import WireError
from ..core.layout import Arrays


def single_array(arrays: ArrayRecord) -> NDArray[Any]:
    """Give the one flat array of a record.

    Raises
    ------
    WireError
        If there is not exactly one.
    """
    check_single(len(arrays))
    try:
        return next(iter(arrays.values())).numpy()
    except (TypeError, ValueError, EOFError) as error:
        raise WireError(f"the array cannot be read: {error}") from error


def check_single(count: int) -> None:
    """Raise ``WireError`` unless one array came."""
    if count != 1:
        raise WireError(
            f"expected one flat array, {count} came; wrap the server's strategy in "
            "AutoFlip, and use autoflip_mod for dense clients only."
        )


def to_arrayrecord(arrays: Arrays) -> ArrayRecord:
    """Put named arrays into Flower's record."""
    return ArrayRecord({name: Array(np.asarray(a)) for name, a in arrays.items()})


def from_arrayrecord(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Take named arrays out of Flower's record."""
    return {name: array.numpy() for name, array in record.items()}


def count_bytes(content: RecordDict) -> int:
    """Count what a message's content weighs on the wire.

    The serialised size of every nested object plus its 32-byte id in the object tree,
    as Flower moves them; never a count of elements.

    Parameters
    ----------
    content : RecordDict

    Returns
    -------
    int
        Bytes.
    """
    try:
        from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
    except ImportError:  # private to Flower: records' own count is within some percent
        records = (content[key] for key in content)
        return sum(record.count_bytes() for record in records if len(record))
    objects = get_all_nested_objects(content)
    return sum(len(obj.deflate()) + len(key) for key, obj in objects.items())
