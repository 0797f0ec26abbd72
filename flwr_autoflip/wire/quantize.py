"""Values in 8 bits with one scale a tensor, and what rounding left for the next time.

Bytes of quantised values, nothing else, tensors in the layout's order:

====================  ===============================================================
bytes                 meaning
====================  ===============================================================
4 a trainable tensor  its scale, float32, little endian
4 a buffer's value    the value itself, float32: running statistics bear no rounding
1 a kept weight       int8; times the tensor's scale it is the value
====================  ===============================================================
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError
from ..graph.pack import check_values, split_values
from ..graph.plan import Plan
from ..methods.statistics import parts

LEVELS = 127


def quantized_size(plan: Plan) -> int:
    """Count the bytes of a plan's values in 8 bits."""
    specs = plan.layout.distinct
    trainable = [plan.count(t.name) for t in specs if t.trainable]
    return 4 * len(trainable) + 4 * (plan.num_values - sum(trainable)) + sum(trainable)


def quantize(
    values: NDArray[np.floating],
    plan: Plan,
    limits: NDArray[np.floating] | None = None,
) -> NDArray[np.uint8]:
    """Round every tensor's values to multiples of its largest over 127.

    Parameters
    ----------
    values : ndarray
        ``(plan.num_values,)``, finite.
    plan : Plan
    limits : ndarray, optional
        ``(plan.num_values,)``: no trainable tensor comes out with a larger L2 norm than
        it has here; one that would gets a smaller scale.

    Returns
    -------
    ndarray
        ``(quantized_size(plan),)``, see the module's table. Without limits no value
        is off by more than half its tensor's scale.

    Raises
    ------
    WireError
        If values are not finite.
    """
    if not np.isfinite(values).all():
        raise WireError("values must be finite to be rounded; training diverged.")
    scales, buffers, weights = [], [], []
    bounds = split_values(values if limits is None else limits, plan)
    for (spec, part), (_, limit) in zip(
        split_values(values, plan), bounds, strict=True
    ):
        if not spec.trainable:
            buffers.append(part.astype("<f4"))
            continue
        largest = np.float32(max(part.max(initial=0), -part.min(initial=0)))
        scale = largest / np.float32(LEVELS)
        # A scale of 0 stands for zeros; below float32's normal range nothing is lost.
        steps = part / scale if scale > 0 else np.zeros(part.shape)
        steps = np.rint(np.clip(steps, -LEVELS, LEVELS))
        if limits is not None:
            scale = min(scale, _scale_to(steps, limit))
        scales.append(scale)
        weights.append(steps.astype(np.int8))
    whole = (np.array(scales, "<f4"), *buffers, *weights)
    return np.concatenate([array.view(np.uint8) for array in whole])


def _scale_to(steps: NDArray[Any], limit: NDArray[Any]) -> np.float32:
    """Give the largest float32 scale with which steps are no longer than a limit."""
    length = _norm(steps)
    exact = _norm(limit) / length if length > 0 else np.inf
    scale = np.float32(exact)
    return np.nextafter(scale, np.float32(0)) if scale > exact else scale


def _norm(values: NDArray[Any]) -> float:
    squares = (np.square(values[p], dtype=np.float64) for p in parts(values.size))
    return float(np.sqrt(sum(square.sum() for square in squares)))


def dequantize(data: NDArray[np.uint8], plan: Plan) -> NDArray[np.float32]:
    """Read :func:`quantize`.

    Parameters
    ----------
    data : ndarray
        ``(quantized_size(plan),)`` uint8.
    plan : Plan

    Returns
    -------
    ndarray
        ``(plan.num_values,)`` float32.

    Raises
    ------
    WireError
        On a wrong length or dtype, or a scale that is negative or not finite.
    """
    size = quantized_size(plan)
    if data.shape != (size,) or data.dtype != np.uint8:
        raise WireError(
            f"values: expected {size} bytes of 8-bit values, got {data.dtype} "
            f"{data.shape}."
        )
    values = np.empty(plan.num_values, np.float32)
    parts = list(split_values(values, plan))
    count = sum(spec.trainable for spec, _ in parts)
    scales = data[: 4 * count].view("<f4")
    if not np.isfinite(scales).all() or (scales < 0).any():
        raise WireError("values: a tensor's scale is negative, NaN or infinite.")
    floats = 4 * sum(part.size for spec, part in parts if not spec.trainable)
    buffers = data[4 * count : 4 * count + floats].view("<f4")
    weights = data[4 * count + floats :].view(np.int8)
    scale = iter(scales)
    for spec, part in parts:
        if spec.trainable:
            with np.errstate(over="ignore"):  # a foreign scale may be anything
                np.multiply(weights[: part.size], next(scale), out=part)
            weights = weights[part.size :]
        else:
            part[:] = buffers[: part.size]
            buffers = buffers[part.size :]
    check_values(values, plan)
    return values


def quantize_with_feedback(
    values: NDArray[np.floating], residual: NDArray[np.float32] | None, plan: Plan
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantise values and what rounding left of earlier ones (error feedback).

    Over many rounds the sum of what is sent is then the sum of what was meant, to one
    rounding (Seide et al., 2014; Karimireddy et al., arXiv:1901.09847). But nothing is
    sent that is longer than this update, tensor by tensor: whoever bounded its norm, as
    clipping for differential privacy does, bounded what the server gets. What that
    takes away is left for the next time as well.

    Parameters
    ----------
    values : ndarray
        ``(plan.num_values,)``: an update, since sums are what is preserved.
    residual : ndarray or None
        What the last call with this plan gave; None at first.
    plan : Plan

    Returns
    -------
    data : ndarray
        See :func:`quantize`.
    residual : ndarray
        ``(plan.num_values,)`` float32, for the next call.
    """
    meant = values.astype(np.float32)
    if residual is not None:
        meant += residual
    data = quantize(meant, plan, values)
    meant -= dequantize(data, plan)
    return data, meant
