"""Values in 16 bits; buffers stay as they are.

Running statistics may be of any size, and a counter of batches passes float16's largest
number, 65,504, after an hour. Bytes, nothing else, tensors in the layout's order:

==================  =================================================================
bytes               meaning
==================  =================================================================
4 a buffer's value  the value itself, float32, little endian
2 a kept weight     float16, little endian
==================  =================================================================
"""

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError
from ..graph.pack import check_values, split_values
from ..graph.plan import Plan

LARGEST = float(np.finfo(np.float16).max)


def sixteen_size(plan: Plan) -> int:
    """Count the bytes of a plan's values in 16 bits."""
    return 4 * plan.num_values - 2 * plan.num_parameters


def to_sixteen(
    values: NDArray[np.floating], plan: Plan, toward_zero: bool = False
) -> NDArray[np.uint8]:
    """Write a plan's values as bytes; see the module's table.

    Parameters
    ----------
    values : ndarray
        ``(plan.num_values,)``.
    plan : Plan
    toward_zero : bool (default: False)
        Round weights toward 0 instead of to the nearest, so that none gets larger.

    Returns
    -------
    ndarray
        ``(sixteen_size(plan),)`` uint8.

    Raises
    ------
    WireError
        If a weight is NaN or beyond float16's range.
    """
    buffers, weights = [], []
    for spec, part in split_values(values, plan):
        if not spec.trainable:
            buffers.append(part.astype("<f4"))
            continue
        largest = max(part.max(initial=0), -part.min(initial=0))
        if not largest <= LARGEST:
            raise WireError(
                f"tensor {spec.name!r} has a weight of size {largest:.3g}, and 16 bits "
                "hold no more than 65504; did training diverge? If not, set "
                "value_dtype='float32'."
            )
        half = part.astype("<f2")
        if toward_zero:
            larger = np.abs(half, dtype=np.float32) > np.abs(part)
            half[larger] = np.nextafter(half[larger], np.float16(0))
        weights.append(half)
    return np.concatenate(
        [np.empty(0, np.uint8), *(a.view(np.uint8) for a in (*buffers, *weights))]
    )


def from_sixteen(data: NDArray[np.uint8], plan: Plan) -> NDArray[np.float32]:
    """Read :func:`to_sixteen`.

    Returns
    -------
    ndarray
        ``(plan.num_values,)`` float32.

    Raises
    ------
    WireError
        On a wrong length or dtype, or values that are not finite.
    """
    size = sixteen_size(plan)
    if data.shape != (size,) or data.dtype != np.uint8:
        raise WireError(
            f"values: expected {size} bytes of 16-bit values, got {data.dtype} "
            f"{data.shape}."
        )
    end = 4 * (plan.num_values - plan.num_parameters)
    buffers, weights = data[:end].view("<f4"), data[end:].view("<f2")
    values = np.empty(plan.num_values, np.float32)
    for spec, part in split_values(values, plan):
        if spec.trainable:
            part[:], weights = weights[: part.size], weights[part.size :]
        else:
            part[:], buffers = buffers[: part.size], buffers[part.size :]
    check_values(values, plan)
    return values
