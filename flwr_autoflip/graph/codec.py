"""Plan <-> bytes (wire version 1).

The bytes speak of a layout that both sides hold; :func:`plan_digest` names both
together. Nothing else, in this order:

=====================  ==============================================================
bytes                  meaning
=====================  ==============================================================
1                      version, 1
1                      1 if element bitmaps follow, else 0
varies                 for each group the code of its kept units among all of them,
                       see :mod:`.subsets`; then zeros to a whole byte
per masked tensor      only if element bitmaps follow: for each trainable tensor in
                       the layout's order one byte 0 (all kept) or 1, and after a 1
                       one bit an element of the *small* tensor, C order, padded to
                       whole bytes
=====================  ==============================================================
"""

from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ..errors import KeepError, WireError
from .layout import DIGEST_BYTES, Layout
from .plan import Plan, keep_from_bool
from .subsets import read_subset, subset_bits, write_subset

Choice = NDArray[np.bool_]

VERSION = 1
_HEADER = 2


@lru_cache(maxsize=16)  # by identity; one plan is encoded for every node and reply
def encode_plan(plan: Plan) -> bytes:
    """Write a plan as bytes; the last ones written are kept."""
    return plan_to_bytes(plan)


def plan_to_bytes(plan: Plan) -> bytes:
    """Write a plan as bytes; see the module's table.

    Parameters
    ----------
    plan : Plan

    Returns
    -------
    bytes
    """
    head = bytes([VERSION, bool(plan.small_mask)])
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


def has_masks(data: bytes) -> bool:
    """Tell whether a plan's bytes say more than which units stay."""
    return data[1:_HEADER] != b"\0"


def plan_digest(data: bytes, layout: Layout) -> bytes:
    """Sixteen bytes that name an encoded plan and the layout that it speaks of."""
    return blake2b(layout.digest + data, digest_size=DIGEST_BYTES).digest()


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
        On another version, missing or surplus bytes, or units that the layout lacks.
    """
    if len(data) < _HEADER or data[0] != VERSION:
        raise WireError(
            f"plan: expected version {VERSION} and at least {_HEADER} bytes, got "
            f"{data[:1].hex() or 'nothing'} and {len(data)} bytes; install the same "
            "flwr-autoflip on both sides."
        )
    if data[1] > 1:
        raise WireError(f"plan: the element flag must be 0 or 1, got {data[1]}.")
    # A view: cutting bytes off their front would copy the rest every time.
    chosen, rest = read_units(memoryview(data)[_HEADER:], layout)
    try:
        plan = Plan(layout, keep_from_bool(chosen))
    except KeepError as error:
        raise WireError(f"plan: {error}") from error
    masks: dict[str, NDArray[np.bool_]] = {}
    if data[1]:
        masks, rest = _decode_masks(rest, plan)
        if not masks:
            raise WireError("plan: element bitmaps are said to follow; none does.")
    if rest:
        raise WireError(f"plan: {len(rest)} bytes too many.")
    return Plan(layout, plan.keep, masks) if masks else plan


def read_units(
    data: memoryview, layout: Layout
) -> tuple[dict[str, Choice], memoryview]:
    """Read one subset of units a group; the inverse of :func:`join_digits`.

    Returns
    -------
    chosen : dict of str to ndarray
        Group name to ``(group.size,)`` bool.
    rest : memoryview
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
    data: memoryview, plan: Plan
) -> tuple[dict[str, NDArray[np.bool_]], memoryview]:
    masks: dict[str, NDArray[np.bool_]] = {}
    for spec in plan.layout.tensors:
        if not spec.trainable:
            continue
        if bytes(data[:1]) not in (b"\0", b"\1"):
            raise WireError(f"plan: tensor {spec.name!r} has no element flag.")
        flag, data = data[0], data[1:]
        if flag:
            small, data = take_bits(data, plan.small_shape(spec.name))
            if small.all():  # a plan has one form, so that its bytes name it
                raise WireError(f"plan: the bitmap of {spec.name!r} keeps all of it.")
            mask = np.zeros(spec.shape, np.bool_)
            plan.put(spec.name, mask, small)
            masks[spec.name] = mask
    return masks, data


def take_bits(
    data: memoryview, shape: tuple[int, ...]
) -> tuple[NDArray[np.bool_], memoryview]:
    """Read one bit an element, C order, padded to whole bytes; give what follows."""
    count = int(np.prod(shape, dtype=np.int64))
    length = (count + 7) // 8
    if len(data) < length:
        raise WireError(f"plan: {length} bytes of bits expected, {len(data)} came.")
    bits = np.unpackbits(np.frombuffer(data[:length], np.uint8))
    if bits[count:].any():
        raise WireError("plan: padding bits must be 0.")
    return bits[:count].astype(np.bool_).reshape(shape), data[length:]
