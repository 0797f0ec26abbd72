"""What becomes of an average: exact where nobody trained, in the model's own dtypes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AutoFlipError
from ..graph.layout import Arrays, Layout
from ..graph.pack import LARGEST, is_variance, unpack_small
from ..graph.plan import Plan


def stand_in(
    base: Arrays,
    values: Sequence[NDArray[Any]],
    plans: Sequence[Plan],
    weights: Sequence[float],
) -> dict[str, NDArray[Any]]:
    """Make what a node is taken to hold where it trained nothing: others' average.

    With it as their base, :func:`.values.expand` makes dense models whose mean by the
    same weights is, at every coordinate, the mean over those who trained it.

    Parameters
    ----------
    base : mapping of str to ndarray
        Dense global arrays that the round started from.
    values : sequence of ndarray
        One a node, ``(plan.num_values,)`` of its plan.
    plans : sequence of Plan
        What each node trained.
    weights : sequence of float
        Above 0.

    Returns
    -------
    dict of str to ndarray
        Dense; the base's values where nobody trained. In its dtypes, but integers
        that some node lacks as float64: a mean of integers is none. ``base`` itself if
        all plans are one object.

    Notes
    -----
    Takes three dense arrays of the largest tensor in float64, whatever the nodes.
    """
    if all(plan is plans[0] for plan in plans):
        return dict(base)
    models = [unpack_small(v, plan) for v, plan in zip(values, plans, strict=True)]
    made = {}
    for spec in plans[0].layout.tensors:
        name = spec.name
        made[name] = base[name]
        if spec.same_as or all(plan.count(name) == spec.size for plan in plans):
            continue
        total, sums = np.zeros(spec.shape), np.zeros(spec.shape)
        for model, plan, weight in zip(models, plans, weights, strict=True):
            plan.add(name, total, weight * plan.small_mask.get(name, np.True_))
            plan.add(name, sums, weight * model[name])  # 0 where a weight went
        trained = total > 0
        np.divide(sums, total, out=sums, where=trained)
        real = spec.dtype if np.dtype(spec.dtype).kind == "f" else np.float64
        made[name] = np.where(trained, sums.astype(real), base[name])
    return made


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
        Parameters that nobody trained become 0 (arXiv:2405.10271v3, Algorithm 1,
        line 25) instead.

    Returns
    -------
    dict of str to ndarray
        Dense, in the layout's dtypes.
    """
    settled, layout = {}, trained[0].layout
    different = {id(plan): plan for plan in trained}.values()
    for spec in layout.distinct:
        base = last[spec.name]
        base = np.zeros_like(base) if zero and spec.trainable else base
        mask = np.logical_or.reduce([p.dense_mask(spec.name) for p in different])
        settled[spec.name] = np.where(mask, aggregated[spec.name], base)
    return cast_to_layout(settled, layout)


def cast_to_layout(arrays: Arrays, layout: Layout) -> dict[str, NDArray[Any]]:
    """Give arrays the model's dtypes; integers are rounded.

    Variances are at least 0: an optimizer's momentum on the server may carry them past.
    """
    cast = {}
    for spec in layout.distinct:
        array = np.asarray(arrays[spec.name])
        whole = np.dtype(spec.dtype).kind in "iu" and array.dtype.kind == "f"
        array = np.maximum(array, 0) if is_variance(spec) else array
        cast[spec.name] = (np.rint(array) if whole else array).astype(spec.dtype)
    return layout.tie(cast)


def check_usable(arrays: Arrays) -> None:
    """Raise ``AutoFlipError`` unless a model's values can travel, as they must next."""
    for name, array in arrays.items():
        if array.dtype.kind != "f" or not array.size:
            continue
        low, high = float(array.min()), float(array.max())
        if not max(-low, high) <= LARGEST or np.isnan(low):
            raise AutoFlipError(
                f"the average of {name!r} is no model's: its values lie in "
                f"[{low:.3g}, {high:.3g}]."
            )
