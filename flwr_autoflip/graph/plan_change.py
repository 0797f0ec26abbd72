"""What changed since a plan that the other side holds, where that is shorter.

Bytes, nothing else:

=====  ===============================================================================
bytes  meaning
=====  ===============================================================================
1      0: units changed; 1: single weights inside the same units changed
rest   0: one bit a unit that came or went, then zeros to a whole byte.
       1: zlib data of: for each trainable tensor in the layout's order one byte 0 (as
       before) or 1, and after a 1 one bit an element of the small tensor that came or
       went, C order, padded to whole bytes
=====  ===============================================================================
"""

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..errors import KeepError, WireError
from .codec import take_bits
from .layout import TensorSpec
from .plan import Plan, keep_from_bool

_UNITS, _WEIGHTS = b"\0", b"\1"


def encode_change(before: Plan, after: Plan) -> bytes | None:
    """Write what makes one plan of another.

    Parameters
    ----------
    before, after : Plan
        Of the same layout.

    Returns
    -------
    bytes or None
        None where both units and single weights changed: send the whole plan.
    """
    flipped = before.alive ^ after.alive
    if not flipped.any():
        parts = (_write_tensor(before, after, t) for t in _trainable(before))
        return _WEIGHTS + zlib.compress(b"".join(parts))
    if before.small_mask or after.small_mask:
        return None
    return _UNITS + np.packbits(flipped).tobytes()


def decode_change(data: bytes, before: Plan) -> Plan:
    """Read :func:`encode_change`.

    Parameters
    ----------
    data : bytes
    before : Plan
        What the change was made from.

    Returns
    -------
    Plan

    Raises
    ------
    WireError
        If the bytes are no change of this plan.
    """
    kind, body = data[:1], memoryview(data)[1:]
    if kind == _UNITS and not before.small_mask:
        flipped, rest = take_bits(body, (before.layout.num_units,))
        alive = before.alive ^ flipped
        chosen = {
            g.name: alive[g.first : g.first + g.size] for g in before.layout.groups
        }
        try:
            after = Plan(before.layout, keep_from_bool(chosen))
        except KeepError as error:
            raise WireError(f"plan change: {error}") from error
    elif kind == _WEIGHTS:
        after, rest = _read_weights(memoryview(_decompress(body, before)), before)
    else:
        raise WireError(f"plan change: unknown kind {kind.hex() or 'nothing'}.")
    if rest:
        raise WireError(f"plan change: {len(rest)} bytes too many.")
    return after


def _trainable(plan: Plan) -> Iterator[TensorSpec]:
    return (t for t in plan.layout.tensors if t.trainable)


def _small_mask(plan: Plan, name: str) -> NDArray[np.bool_]:
    mask = plan.small_mask.get(name)
    return np.ones(plan.small_shape(name), np.bool_) if mask is None else mask


def _write_tensor(before: Plan, after: Plan, spec: TensorSpec) -> bytes:
    if spec.name not in {**before.small_mask, **after.small_mask}:
        return b"\0"
    flipped = _small_mask(before, spec.name) ^ _small_mask(after, spec.name)
    return b"\1" + np.packbits(flipped).tobytes() if flipped.any() else b"\0"


def _read_weights(data: memoryview, before: Plan) -> tuple[Plan, memoryview]:
    masks = {}
    for spec in _trainable(before):
        flag, data = bytes(data[:1]), data[1:]
        if flag not in (b"\0", b"\1"):
            raise WireError(f"plan change: tensor {spec.name!r} has no element flag.")
        small = _small_mask(before, spec.name)
        if flag == b"\1":
            flipped, data = take_bits(data, small.shape)
            small = small ^ flipped
        if not small.all():
            masks[spec.name] = np.zeros(spec.shape, np.bool_)
            before.put(spec.name, masks[spec.name], small)
    return Plan(before.layout, before.keep, masks), data


def _decompress(data: memoryview, before: Plan) -> bytes:
    """Decompress no more than a change of this plan can have."""
    longest = sum(
        2 + before.layout.by_name[t.name].size // 8 for t in _trainable(before)
    )
    reader = zlib.decompressobj()
    try:
        body = reader.decompress(data, longest + 1)
    except zlib.error as error:
        raise WireError(f"plan change: no zlib data: {error}") from error
    if len(body) > longest or not reader.eof or reader.unused_data:
        raise WireError("plan change: zlib data of another length than a plan's.")
    return body
