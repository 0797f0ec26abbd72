"""Cutting index sets out of arrays at the memory's speed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 1 << 20
"""What is cut twice is cut in parts that stay in the processor's cache."""


def gather(
    array: NDArray[Any], axes: Sequence[NDArray[np.int64] | None], out: NDArray[Any]
) -> None:
    """Copy ``array[np.ix_(*axes)]`` into ``out``.

    Parameters
    ----------
    array : ndarray
    axes : sequence of ndarray or None
        Ascending indices of every axis; None takes all of it.
    out : ndarray
        Contiguous, of the result's shape and the array's dtype.
    """
    cut = [(axis, *_runs(kept)) for axis, kept in enumerate(axes) if kept is not None]
    if not cut:
        np.copyto(out, array)
        return
    first, *rest = cut
    axis, run, blocks = first
    if not rest:
        _take(array, axis, run, blocks, out)
        return
    size = array.nbytes // array.shape[axis] * run
    step = max(1, CHUNK_BYTES // max(1, size)) if axis == 0 else blocks.size
    for start in range(0, blocks.size, step):
        chosen = blocks[start : start + step]
        part = _take(array, axis, run, chosen)
        for other in rest[:-1]:
            part = _take(part, *other)
        place = out[start * run : (start + chosen.size) * run] if axis == 0 else out
        _take(part, *rest[-1], place)


def box(axes: Sequence[NDArray[np.int64] | None], shape: tuple[int, ...]) -> Any:
    """Give the index that selects some indices of every axis; None stands for all."""
    if all(axis is None for axis in axes):
        return ...
    return np.ix_(
        *(
            np.arange(length) if axis is None else axis
            for axis, length in zip(axes, shape, strict=True)
        )
    )


def _runs(kept: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """Find the longest runs that indices can be cut into, all aligned and as long.

    Examples
    --------
    >>> _runs(np.array([4, 5, 6, 7, 10, 11]))
    (2, array([2, 3, 5]))
    """
    starts = np.flatnonzero(np.diff(kept, prepend=kept[0] - 2) != 1)
    run = int(np.gcd.reduce([*kept[starts], *starts, kept.size]))
    return run, kept[::run] // run


def _take(
    array: NDArray[Any],
    axis: int,
    run: int,
    blocks: NDArray[np.int64],
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Take blocks of an axis, each ``run`` long: whole runs copy faster."""
    shape = array.shape
    before, length, after = shape[:axis], shape[axis], shape[axis + 1 :]
    if length % run:  # the last block, which nobody takes, is cut short
        array = array[(slice(None),) * axis + (slice(length // run * run),)]
    whole = array.reshape(*before, length // run, run, *after)
    place = None if out is None else out.reshape(*before, blocks.size, run, *after)
    # Clipping checks nothing while copying; the indices are known to lie inside.
    part = np.take(whole, blocks, axis, out=place, mode="clip")
    return part.reshape(*before, blocks.size * run, *after)
