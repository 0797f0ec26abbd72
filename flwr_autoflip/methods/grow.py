"""Let units into a network that is being trained, without changing what it computes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.layout import Arrays
from ..graph.plan import Plan, box
from .rescale import rescale_fan_in


def grow(
    arrays: Arrays, before: Plan, after: Plan, rescale: bool = True
) -> dict[str, NDArray[Any]]:
    """Set the weights that units need to come in.

    Whoever was there does not listen to the new units at first: those inputs are zero,
    and learn from the first step on. The new units' own weights stay as they are, which
    is as they were initialised; if ``rescale``, times
    ``sqrt(full fan-in / kept fan-in)`` as in :func:`.rescale.rescale_fan_in`. So the
    larger network computes what the smaller one did, unless it normalises over an axis
    that grew. Not in the paper.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Dense arrays; left untouched.
    before, after : Plan
        Of one layout; units that only ``before`` has are of no matter.
    rescale : bool (default: True)
        Whether new units make up for the inputs they lack.

    Returns
    -------
    dict of str to ndarray
        Dense arrays; only layers that gained inputs, or units that read some but not
        all inputs, are new.
    """
    grown = rescale_fan_in(arrays, after) if rescale else dict(arrays)
    for spec in after.layout.tensors:
        if not spec.input_axes:
            continue
        old, new = before.index[spec.name], after.index[spec.name]
        ears = tuple(
            new[axis] if axis in spec.input_axes else old[axis]
            for axis in range(len(spec.shape))
        )
        dense = np.array(grown[spec.name])
        dense[box(ears, spec.shape)] = 0
        before.put(spec.name, dense, before.take(spec.name, arrays[spec.name]))
        grown[spec.name] = dense
    return grown
