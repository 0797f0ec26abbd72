"""Lossless packing of values: bytes of equal rank together, then Zstandard."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AutoFlipError, WireError

LEVEL = 3
"""Of Zstandard: beyond it time grows, size hardly falls."""

_ZSTD = 4  # in the three highest bits of a Blosc header's flags


def check_available() -> None:
    """Raise unless the library that packs is installed.

    Raises
    ------
    AutoFlipError
        With the command that installs it.
    """
    try:
        from numcodecs import blosc  # noqa: F401
    except ImportError as error:
        raise AutoFlipError(
            "compress=True needs numcodecs: pip install 'flwr-autoflip[compress]', on "
            "the server and on every node."
        ) from error


def compress(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Pack a flat array.

    Parameters
    ----------
    values : ndarray
        ``(n,)`` with n > 0, any dtype, below 2 GiB.

    Returns
    -------
    ndarray
        ``(m,)`` uint8; never much longer than ``values``.
    """
    check_available()
    from numcodecs import blosc

    packed = blosc.compress(
        np.ascontiguousarray(values), b"zstd", LEVEL, blosc.SHUFFLE, 0
    )
    return np.frombuffer(packed, np.uint8)


def decompress(packed: NDArray[Any], size: int, dtype: str) -> NDArray[Any]:
    """Unpack :func:`compress`.

    Parameters
    ----------
    packed : ndarray
        ``(m,)`` uint8.
    size : int
        How many values there have to be; checked before memory is taken.
    dtype : str
        Their dtype.

    Returns
    -------
    ndarray
        ``(size,)`` of ``dtype``.

    Raises
    ------
    WireError
        If it is no packed array of that many values.
    """
    check_available()
    from numcodecs import blosc

    data = np.ascontiguousarray(packed)
    if data.dtype != np.uint8 or data.ndim != 1 or data.size < blosc.MAX_OVERHEAD:
        raise WireError("values: expected packed bytes, something else came.")
    itemsize = np.dtype(dtype).itemsize
    length, _, packed_length = (int(n) for n in data[4:16].view("<u4"))  # the header
    if (length, packed_length) != (size * itemsize, data.size):
        raise WireError(
            f"values: expected {size * itemsize} bytes in {data.size} packed ones, "
            f"their header says {length} in {packed_length}."
        )
    if data[2] >> 5 != _ZSTD or data[3] != itemsize:
        raise WireError("values: expected Zstandard and values of this dtype.")
    values = np.empty(size, dtype)
    try:
        blosc.decompress(data, values)
    except RuntimeError as error:
        raise WireError(f"values: packed bytes are damaged: {error}") from error
    return values
