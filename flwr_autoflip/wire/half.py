"""Sixteen bits for reports: what is small survives, scaled."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError


def to_half(values: NDArray[Any]) -> tuple[NDArray[np.float16], float]:
    """Scale by a power of two into float16's range, so that small updates survive.

    Parameters
    ----------
    values : ndarray
        Finite, any range.

    Returns
    -------
    half : ndarray
        Same shape, float16.
    scale : float
        Divide by it to get the values back, to about one part in 2000 over 27 bits
        of range.

    Examples
    --------
    >>> half, scale = to_half(np.float32([1e-9, -2e-9]))
    >>> np.allclose(from_half(half, scale), [1e-9, -2e-9], rtol=1e-3, atol=0)
    True
    """
    largest = float(np.max(np.abs(values), initial=0.0))
    if not np.isfinite(largest):
        raise WireError("a report must be finite; training diverged on this node.")
    scale = half_scale(largest)
    return (np.asarray(values, np.float64) * scale).astype(np.float16), scale


def half_scale(largest: float) -> float:
    """Give the power of two that brings values up to ``largest`` into float16."""
    exponent = 14 - int(np.frexp(largest)[1]) if largest > 0 else 0
    return float(np.ldexp(1.0, min(exponent, 120)))


def from_half(half: NDArray[Any], scale: float) -> NDArray[np.float32]:
    """Undo :func:`to_half`.

    Raises
    ------
    WireError
        If the scale is not a positive finite number.
    """
    if not (np.isfinite(scale) and scale > 0):
        raise WireError(f"a report's scale must be positive and finite, got {scale}.")
    with np.errstate(over="ignore"):  # a foreign scale may be anything
        out = np.empty(np.shape(half), np.float32)
        np.divide(half, scale, out=out, dtype=np.float64, casting="unsafe")
    return out
