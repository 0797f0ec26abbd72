"""Let units into a network that is being trained, without changing what it computes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import Arrays
from .plan import Plan


def grow(arrays: Arrays, before: Plan, after: Plan) -> dict[str, NDArray[Any]]:
    """Set the weights that units need to come in.

    Whoever was there does not listen to the new units at first: those inputs are zero,
    and learn from the first step on. The new units' own weights stay as they are, which
    is as they were initialised, times ``sqrt(full fan-in / kept fan-in)`` as in
    :func:`.rescale.rescale_fan_in`. So the larger network computes what the smaller one
    did, unless it normalises over an axis that grew. Not in the paper.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Dense arrays; left untouched.
    before, after : Plan
        Of one layout; units that only ``before`` has are of no matter.

    Returns
    -------
    dict of str to ndarray
        Dense arrays; only layers that gained inputs, or units that read some but not
        all inputs, are new.
    """
    grown = dict(arrays)
    for spec in after.layout.tensors:
        if not spec.input_axes:
            continue
        old, new = before.index[spec.name], after.index[spec.name]
        dense = np.array(arrays[spec.name])
        there = before.take(spec.name, dense).copy()
        if not spec.normalized:
            full = np.prod([spec.shape[axis] for axis in spec.input_axes])
            small = after.small_shape(spec.name)
            kept = np.prod([small[axis] for axis in spec.input_axes])
            factor = np.asarray(np.sqrt(full / kept), dense.dtype)
            after.put(spec.name, dense, after.take(spec.name, dense) * factor)
        ears = tuple(
            new[axis] if axis in spec.input_axes else old[axis]
            for axis in range(len(spec.shape))
        )
        dense[_box(ears, spec.shape)] = 0
        before.put(spec.name, dense, there)
        grown[spec.name] = dense
    return grown


def _box(
    axes: tuple[NDArray[np.int64] | None, ...], shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], ...]:
    """Select some indices of every axis; None stands for all."""
    return np.ix_(
        *(
            np.arange(length) if axis is None else axis
            for axis, length in zip(axes, shape, strict=True)
        )
    )
