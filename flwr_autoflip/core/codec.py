"""Arrays + plan <-> one flat array of values; plan <-> bytes (wire version 1).

Bytes of a plan, in this order, nothing else:

=====================  ==============================================================
bytes                  meaning
=====================  ==============================================================
1                      version, 1
16                     digest of the layout
1                      1 if element bitmaps follow, else 0
varies                 for each group the code of its kept units among all of them,
                       see :mod:`.subsets`; then zeros to a whole byte
per masked tensor      only if element bitmaps follow: for each trainable tensor in
                       the layout's order one byte 0 (all kept) or 1, and after a 1
                       one bit an element of the *small* tensor, C order, padded to
                       whole bytes
=====================  ==============================================================
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import KeepError, WireError
from .layout import DIGEST_BYTES, Arrays, Layout, TensorSpec
from .plan import Plan, keep_from_bool
from .subsets import read_subset, subset_bits, write_subset

Choice = NDArray[np.bool_]

VERSION = 1
_HEADER = 1 + DIGEST_BYTES + 1
VALUE_DTYPES = ("float32", "float16")


# --- Plan <-> bytes ---


@lru_cache(maxsize=16)  # by identity; one plan is encoded for every node and reply
def encode_plan(plan: Plan) -> bytes:
    """Write a plan as bytes; see the module's table.

    Parameters
    ----------
    plan : Plan

    Returns
    -------
    bytes
    """
    head = bytes([VERSION]) + plan.layout.digest + bytes([bool(plan.small_mask)])
    units = (plan.alive[g.first : g.first + g.size] for g in plan.layout.groups)
    parts = [head, join_digits(write_subset(choice) for choice in units)]
    for spec in plan.layout.tensors if plan.small_mask else ():
        if not spec.trainable:
            continue
        mask = plan.small_mask.get(spec.name)
        parts.append(b"\0" if mask is None else b"\1" + np.packbits(mask).tobytes())
    return b"".join(parts)


def join_digits(codes: Iterable[str]) -> bytes:
    """Put codes of 0 and 1 behind each other, with zeros to a whole byte."""
    digits = np.frombuffer("".join(codes).encode(), np.uint8)
    return np.packbits(digits & 1).tobytes()


def plan_digest(data: bytes) -> bytes:
    """Sixteen bytes that name an encoded plan (and, through it, its layout)."""
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


def decode_plan(data: bytes, layout: Layout) -> Plan:
    """Read :func:`encode_plan`.

    Parameters
    ----------
    data : bytes
    layout : Layout
        The model that both sides hold.

    Returns
    -------
    Plan

    Raises
    ------
    WireError
        On another version, another model's plan, missing or surplus bytes.
    """
    if len(data) < _HEADER or data[0] != VERSION:
        raise WireError(
            f"plan: expected version {VERSION} and at least {_HEADER} bytes, got "
            f"{data[:1].hex() or 'nothing'} and {len(data)} bytes; install the same "
            "flwr-autoflip on both sides."
        )
    if data[1 : 1 + DIGEST_BYTES] != layout.digest:
        raise WireError("plan: it was made for another model than this node's.")
    if data[_HEADER - 1] > 1:
        raise WireError(f"plan: the element flag must be 0 or 1, got {data[17]}.")
    chosen, rest = read_units(data[_HEADER:], layout)
    try:
        plan = Plan(layout, keep_from_bool(chosen))
    except KeepError as error:
        raise WireError(f"plan: {error}") from error
    masks: dict[str, NDArray[np.bool_]] = {}
    if data[_HEADER - 1]:
        masks, rest = _decode_masks(rest, plan)
    if rest:
        raise WireError(f"plan: {len(rest)} bytes too many.")
    return Plan(layout, plan.keep, masks) if masks else plan


def read_units(data: bytes, layout: Layout) -> tuple[dict[str, Choice], bytes]:
    """Read one subset of units a group; the inverse of :func:`join_digits`.

    Returns
    -------
    chosen : dict of str to ndarray
        Group name to ``(group.size,)`` bool.
    rest : bytes
        What follows.

    Raises
    ------
    WireError
        If bits are missing, name no subset, or padding is not zero.
    """
    longest = sum(subset_bits(group.size) for group in layout.groups)
    head = np.frombuffer(data[: (longest + 7) // 8], np.uint8)
    digits = (np.unpackbits(head) + ord("0")).tobytes().decode()
    chosen, end = {}, 0
    for group in layout.groups:
        try:
            chosen[group.name], end = read_subset(digits, end, group.size)
        except WireError as error:
            raise WireError(f"plan: group {group.name!r}: {error}") from error
    length = (end + 7) // 8
    if "1" in digits[end : 8 * length]:
        raise WireError("plan: padding bits must be 0.")
    return chosen, data[length:]


def _decode_masks(
    data: bytes, plan: Plan
) -> tuple[dict[str, NDArray[np.bool_]], bytes]:
    masks: dict[str, NDArray[np.bool_]] = {}
    for spec in plan.layout.tensors:
        if not spec.trainable:
            continue
        if data[:1] not in (b"\0", b"\1"):
            raise WireError(f"plan: tensor {spec.name!r} has no element flag.")
        flag, data = data[0], data[1:]
        if flag:
            small, data = take_bits(data, plan.small_shape(spec.name))
            mask = np.zeros(spec.shape, np.bool_)
            plan.put(spec.name, mask, small)
            masks[spec.name] = mask
    return masks, data


def take_bits(data: bytes, shape: tuple[int, ...]) -> tuple[NDArray[np.bool_], bytes]:
    """Read one bit an element, C order, padded to whole bytes; give what follows."""
    count = int(np.prod(shape, dtype=np.int64))
    length = (count + 7) // 8
    if len(data) < length:
        raise WireError(f"plan: {length} bytes of bits expected, {len(data)} came.")
    bits = np.unpackbits(np.frombuffer(data[:length], np.uint8))
    if bits[count:].any():
        raise WireError("plan: padding bits must be 0.")
    return bits[:count].astype(np.bool_).reshape(shape), data[length:]


# --- Arrays <-> values ---


def pack(arrays: Arrays, plan: Plan, dtype: str = "float32") -> NDArray[Any]:
    """Flatten the kept part of dense arrays, in the layout's order.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Dense arrays.
    plan : Plan
    dtype : {"float32", "float16"} (default: "float32")

    Returns
    -------
    ndarray
        ``(plan.num_values,)`` of ``dtype``.
    """
    values = _empty_values(plan, dtype)
    for spec, part in _parts(values, plan):
        dense = np.asarray(arrays[spec.name])
        if spec.name in plan.small_mask or dense.dtype != part.dtype:
            _fill(part, plan.take(spec.name, dense), plan.small_mask.get(spec.name))
        else:  # without a copy between
            plan.take(spec.name, dense, part.reshape(plan.small_shape(spec.name)))
    return values


def pack_small(small: Arrays, plan: Plan, dtype: str = "float32") -> NDArray[Any]:
    """Flatten the arrays of a small model; the twin of :func:`unpack_small`.

    Values beyond float16's range are clipped to it: infinity would be refused.
    """
    values = _empty_values(plan, dtype)
    for spec, part in _parts(values, plan):
        _fill(part, np.asarray(small[spec.name]), plan.small_mask.get(spec.name))
    return values


def _empty_values(plan: Plan, dtype: str) -> NDArray[Any]:
    if dtype not in VALUE_DTYPES:
        raise WireError(f"value dtype must be one of {VALUE_DTYPES}, got {dtype!r}.")
    return np.empty(plan.num_values, dtype)


def _parts(
    values: NDArray[Any], plan: Plan
) -> Iterator[tuple[TensorSpec, NDArray[Any]]]:
    """Cut values into the tensors' parts, as views."""
    start = 0
    for spec in plan.layout.tensors:
        end = start + plan.count(spec.name)
        yield spec, values[start:end]
        start = end


def _fill(
    part: NDArray[Any], small: NDArray[Any], mask: NDArray[np.bool_] | None
) -> None:
    flat = small.ravel() if mask is None else small[mask]
    if part.dtype == np.float16:
        limit = np.finfo(np.float16).max
        flat = np.where(np.isfinite(flat), np.clip(flat, -limit, limit), flat)
    part[:] = flat


def unpack_small(values: NDArray[Any], plan: Plan) -> dict[str, NDArray[Any]]:
    """Rebuild a small model's arrays; single weights that went are 0.

    Parameters
    ----------
    values : ndarray
        ``(plan.num_values,)`` floating point.
    plan : Plan

    Returns
    -------
    dict of str to ndarray
        Small shapes, the layout's dtypes.

    Raises
    ------
    WireError
        On a wrong length, shape or dtype, or on values that are not finite.
    """
    check_values(values, plan)
    small: dict[str, NDArray[Any]] = {}
    for spec, values_of in _parts(values, plan):
        part = _cast(values_of, spec.dtype)
        mask = plan.small_mask.get(spec.name)
        if mask is None:
            small[spec.name] = part.reshape(plan.small_shape(spec.name))
        else:
            small[spec.name] = np.zeros(mask.shape, spec.dtype)
            small[spec.name][mask] = part
    return small


def check_values(values: NDArray[Any], plan: Plan) -> None:
    """Raise :class:`WireError` unless ``values`` can be the plan's values."""
    if values.shape != (plan.num_values,):
        raise WireError(
            f"values: the plan keeps {plan.num_values} values, an array of shape "
            f"{values.shape} came."
        )
    if values.dtype.name not in VALUE_DTYPES:
        raise WireError(f"values: dtype {values.dtype} is not one of {VALUE_DTYPES}.")
    # Extremes are finite only if all are, and take no memory.
    if values.size and not np.isfinite([values.min(), values.max()]).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise WireError(f"values: {bad} of {values.size} are NaN or infinite.")


def _cast(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    target = np.dtype(dtype)
    if target.kind in "iu":
        values = np.rint(values.astype(np.float64))
        low, high = float(np.iinfo(target).min), float(np.iinfo(target).max) + 1
        if values.size and not (low <= values.min() and values.max() < high):
            raise WireError(f"values: a buffer's value does not fit into {target}.")
    return values.astype(target)


def expand(base: Arrays, values: NDArray[Any], plan: Plan) -> dict[str, NDArray[Any]]:
    """Put values back into full shape; everything else is ``base``, bit for bit.

    The inverse of :func:`pack` on kept coordinates (DESIGN: shrink / expand).

    Parameters
    ----------
    base : mapping of str to ndarray
        Dense arrays; left untouched.
    values : ndarray
        ``(plan.num_values,)``.
    plan : Plan

    Returns
    -------
    dict of str to ndarray
        New dense arrays in the base's dtypes.
    """
    small = unpack_small(values, plan)
    full: dict[str, NDArray[Any]] = {}
    for spec in plan.layout.tensors:
        full[spec.name] = np.array(base[spec.name])
        part = small[spec.name]
        mask = plan.small_mask.get(spec.name)
        if mask is not None:
            part = np.where(mask, part, plan.take(spec.name, full[spec.name]))
        plan.put(spec.name, full[spec.name], part)
    return full


# --- Sixteen bits for reports ---


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
