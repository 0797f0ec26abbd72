"""What becomes of an average: exact where nobody trained, in the model's own dtypes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import Arrays, Layout
from .plan import Plan


def settle(
    aggregated: Arrays, last: Arrays, trained: Plan, *, zero: bool = False
) -> dict[str, NDArray[Any]]:
    """Take the average where nodes trained and the last global value elsewhere.

    Whatever the inner optimizer did there (momentum, noise) has no effect.

    Parameters
    ----------
    aggregated : mapping of str to ndarray
        Dense arrays from the inner strategy, any dtype.
    last : mapping of str to ndarray
        Dense global arrays that the round started from.
    trained : Plan
        What nodes sent back.
    zero : bool (default: False)
        Parameters that nobody trained become 0 (arXiv:2405.10271v4, Algorithm 1,
        line 25) instead.

    Returns
    -------
    dict of str to ndarray
        Dense, in the layout's dtypes.
    """
    settled = {}
    for spec in trained.layout.tensors:
        base = last[spec.name]
        base = np.zeros_like(base) if zero and spec.trainable else base
        mask = trained.dense_mask(spec.name)
        settled[spec.name] = np.where(mask, aggregated[spec.name], base)
    return cast_to_layout(settled, trained.layout)


def cast_to_layout(arrays: Arrays, layout: Layout) -> dict[str, NDArray[Any]]:
    """Give arrays the model's dtypes; integers are rounded."""
    cast = {}
    for spec in layout.tensors:
        array = np.asarray(arrays[spec.name])
        whole = np.dtype(spec.dtype).kind in "iu" and array.dtype.kind == "f"
        cast[spec.name] = (np.rint(array) if whole else array).astype(spec.dtype)
    return cast
