"""What becomes of an average: exact where nobody trained, in the model's own dtypes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import Arrays, Layout
from .plan import Plan


def fill(
    models: Sequence[dict[str, NDArray[Any]]],
    plans: Sequence[Plan],
    weights: Sequence[float],
) -> Sequence[dict[str, NDArray[Any]]]:
    """Put the others' average where a node did not train.

    A mean over all nodes by the same weights is then, at every coordinate, the mean
    over those who trained it, whoever computes it.

    Parameters
    ----------
    models : sequence of dict of str to ndarray
        One a node, dense arrays.
    plans : sequence of Plan
        What each node trained.
    weights : sequence of float
        Above 0.

    Returns
    -------
    sequence of dict of str to ndarray
        Dense arrays in the models' dtypes, integers as float64 where they were filled;
        unchanged where nobody trained. ``models`` itself if all plans are one object.
    """
    if all(plan is plans[0] for plan in plans):
        return models
    filled: list[dict[str, NDArray[Any]]] = [{} for _ in models]
    for spec in plans[0].layout.tensors:
        name = spec.name
        masks = {id(plan): plan.dense_mask(name) for plan in plans}
        total, sums = np.zeros(spec.shape), np.zeros(spec.shape)
        for model, plan, weight in zip(models, plans, weights, strict=True):
            total += weight * masks[id(plan)]
            sums += weight * np.where(masks[id(plan)], model[name], 0)
        trained = total > 0
        mean = np.divide(sums, total, out=np.zeros(spec.shape), where=trained)
        for full, model, plan in zip(filled, models, plans, strict=True):
            lacks = trained & ~masks[id(plan)]
            full[name] = _put(model[name], lacks, mean) if lacks.any() else model[name]
    return filled


def _put(
    array: NDArray[Any], where: NDArray[np.bool_], mean: NDArray[np.float64]
) -> NDArray[Any]:
    """Replace some values; a mean of integers is none."""
    real = array.dtype if array.dtype.kind == "f" else np.float64
    return np.where(where, mean.astype(real), array)


def settle(
    aggregated: Arrays, last: Arrays, trained: Sequence[Plan], *, zero: bool = False
) -> dict[str, NDArray[Any]]:
    """Take the average where nodes trained and the last global value elsewhere.

    Whatever the inner optimizer did there (momentum, noise) has no effect.

    Parameters
    ----------
    aggregated : mapping of str to ndarray
        Dense arrays from the inner strategy, any dtype.
    last : mapping of str to ndarray
        Dense global arrays that the round started from.
    trained : sequence of Plan
        What nodes sent back; one of each kind is enough.
    zero : bool (default: False)
        Parameters that nobody trained become 0 (arXiv:2405.10271v4, Algorithm 1,
        line 25) instead.

    Returns
    -------
    dict of str to ndarray
        Dense, in the layout's dtypes.
    """
    settled, layout = {}, trained[0].layout
    different = {id(plan): plan for plan in trained}.values()
    for spec in layout.tensors:
        base = last[spec.name]
        base = np.zeros_like(base) if zero and spec.trainable else base
        mask = np.logical_or.reduce([p.dense_mask(spec.name) for p in different])
        settled[spec.name] = np.where(mask, aggregated[spec.name], base)
    return cast_to_layout(settled, layout)


def cast_to_layout(arrays: Arrays, layout: Layout) -> dict[str, NDArray[Any]]:
    """Give arrays the model's dtypes; integers are rounded."""
    cast = {}
    for spec in layout.tensors:
        array = np.asarray(arrays[spec.name])
        whole = np.dtype(spec.dtype).kind in "iu" and array.dtype.kind == "f"
        cast[spec.name] = (np.rint(array) if whole else array).astype(spec.dtype)
    return cast
