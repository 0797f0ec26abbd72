"""Arrays + plan <-> one flat array of values, in the layout's order of tensors."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AutoFlipError, WireError
from .layout import Arrays, TensorSpec
from .plan import Plan

LARGEST = 2.0**60
"""Of a value on the wire: sums of many, and squares, stay within float32."""


def pack(arrays: Arrays, plan: Plan) -> NDArray[np.float32]:
    """Flatten the kept part of dense arrays, in the layout's order.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Dense arrays.
    plan : Plan

    Returns
    -------
    ndarray
        ``(plan.num_values,)`` float32. Integers, such as BatchNorm's counters, are
        exact up to 2^24.
    """
    values = np.empty(plan.num_values, np.float32)
    for spec, part in split_values(values, plan):
        dense = np.asarray(arrays[spec.name])
        if spec.name in plan.small_mask or dense.dtype != part.dtype:
            _fill(part, plan.take(spec.name, dense), plan.small_mask.get(spec.name))
        else:  # without a copy between
            plan.take(spec.name, dense, part.reshape(plan.small_shape(spec.name)))
    return values


def pack_small(small: Arrays, plan: Plan) -> NDArray[np.float32]:
    """Flatten the arrays of a small model; the twin of :func:`unpack_small`."""
    values = np.empty(plan.num_values, np.float32)
    for spec, part in split_values(values, plan):
        _fill(part, np.asarray(small[spec.name]), plan.small_mask.get(spec.name))
    return values


def split_values(
    values: NDArray[Any], plan: Plan
) -> Iterator[tuple[TensorSpec, NDArray[Any]]]:
    """Cut ``(plan.num_values,)`` into the tensors' parts, as flat views, in order."""
    start = 0
    for spec in plan.layout.distinct:
        end = start + plan.count(spec.name)
        yield spec, values[start:end]
        start = end


def _fill(
    part: NDArray[Any], small: NDArray[Any], mask: NDArray[np.bool_] | None
) -> None:
    part[:] = small.ravel() if mask is None else small[mask]


def unpack_small(values: NDArray[Any], plan: Plan) -> dict[str, NDArray[Any]]:
    """Rebuild a small model's arrays; pruned single weights are 0.

    Parameters
    ----------
    values : ndarray
        ``(plan.num_values,)`` float32.
    plan : Plan

    Returns
    -------
    dict of str to ndarray
        Small shapes, the layout's dtypes; parts of ``values`` where that is possible.

    Raises
    ------
    WireError
        On a wrong length, shape or dtype, or on values that are not finite, too large,
        or do not fit into the model's own dtypes.
    """
    check_values(values, plan)
    small: dict[str, NDArray[Any]] = {}
    for spec, values_of in split_values(values, plan):
        part = _cast_exactly(values_of, spec.dtype)
        mask = plan.small_mask.get(spec.name)
        if mask is None:
            small[spec.name] = part.reshape(plan.small_shape(spec.name))
        else:
            small[spec.name] = np.zeros(mask.shape, spec.dtype)
            small[spec.name][mask] = part
    return plan.layout.tie(small)


def expand(
    base: Arrays,
    values: NDArray[Any] | Arrays,
    plan: Plan,
    out: dict[str, NDArray[Any]] | None = None,
) -> dict[str, NDArray[Any]]:
    """Put a small model's values back into full shape; the rest is ``base``.

    On kept coordinates the inverse of :func:`pack`, and of cutting a small model with
    :func:`.shrink.shrink`.

    Parameters
    ----------
    base : mapping of str to ndarray
        Dense arrays; left untouched.
    values : ndarray, or mapping of str to ndarray
        ``(plan.num_values,)`` float32, or the small model's arrays.
    plan : Plan
    out : dict of str to ndarray, optional
        Dense arrays of the base's shapes and dtypes, to be filled.

    Returns
    -------
    dict of str to ndarray
        ``out``, or new dense arrays in the base's dtypes.

    Raises
    ------
    AutoFlipError
        If arrays are not the small model's; :class:`WireError` as
        :func:`unpack_small`.
    """
    if isinstance(values, Mapping):
        small = values
        _check_small(small, plan)
    else:
        small = unpack_small(values, plan)
    full = {n: np.empty_like(a) for n, a in base.items()} if out is None else out
    for spec in plan.layout.distinct:
        np.copyto(full[spec.name], base[spec.name])
        part = small[spec.name]
        mask = plan.small_mask.get(spec.name)
        if mask is not None:
            part = np.where(mask, part, plan.take(spec.name, full[spec.name]))
        plan.put(spec.name, full[spec.name], part)
    for spec in plan.layout.tensors:
        if spec.same_as:
            np.copyto(full[spec.name], full[spec.same_as])
    return full


def _check_small(small: Arrays, plan: Plan) -> None:
    for spec in plan.layout.tensors:
        shape, array = plan.small_shape(spec.name), small.get(spec.name)
        got = "nothing" if array is None else np.shape(array)
        if got != shape:
            raise AutoFlipError(
                f"tensor {spec.name!r}: the plan's model has shape {shape}, got {got}; "
                "give the arrays of the model that shrink() built from this plan."
            )


# --- What values may be ---


def check_values(values: NDArray[Any], plan: Plan) -> None:
    """Raise :class:`WireError` unless ``values`` can be the plan's values."""
    if values.shape != (plan.num_values,):
        raise WireError(
            f"values: the plan keeps {plan.num_values} values, an array of shape "
            f"{values.shape} came."
        )
    if values.dtype != np.float32:
        raise WireError(f"values: expected float32, dtype {values.dtype} came.")
    # One pass and no memory: where the squares' sum is small enough, each of them is.
    if np.vdot(values, values) <= LARGEST**2:
        return
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not np.isfinite([low, high]).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise WireError(f"values: {bad} of {values.size} are NaN or infinite.")
    if max(-low, high) > LARGEST:
        raise WireError(f"values: [{low:.3g}, {high:.3g}] is beyond 2^60 in size.")


def _cast_exactly(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Turn values into a tensor's own dtype, integers rounded, or refuse them."""
    target = np.dtype(dtype)
    if target.kind in "iu":
        values = np.rint(values.astype(np.float64))
        low, high = float(np.iinfo(target).min), float(np.iinfo(target).max) + 1
        fits = not values.size or (low <= values.min() and values.max() < high)
    else:
        largest = 65504.0 if target == np.float16 else np.inf
        fits = max(values.max(initial=0), -values.min(initial=0)) <= largest
    if not fits:
        raise WireError(f"values: one does not fit into the model's {target}.")
    return values.astype(target, copy=False)


def is_variance(spec: TensorSpec) -> bool:
    """Tell a normalisation's running variance from other tensors."""
    return not spec.trainable and spec.name.rpartition(".")[2] == "running_var"


def clear_rounding_inplace(
    spec: TensorSpec, values: NDArray[np.floating], rounding: float
) -> None:
    """Take away what rounding of an update left of a running variance below 0.

    By so far, of the largest value, may ``rounding`` carry one.
    """
    if is_variance(spec) and values.size:
        values[(values < 0) & (values > -rounding * values.max())] = 0
