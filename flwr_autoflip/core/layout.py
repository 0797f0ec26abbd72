"""What a model is made of: its tensors, and the units that live or die together.

A *unit* is one output slice of a layer (a filter, a neuron). Units are numbered
through the whole model. Every axis of every tensor says, index by index, which unit
owns it, or that nobody does. That one fact covers flattening (a unit owns a run of
columns), concatenation (an axis is owned by several layers), residual sums (two
layers' slices have one owner) and depthwise convolutions alike, and it makes the kept
part of any tensor a plain product of index sets.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import AutoFlipError, WireError

Arrays = Mapping[str, NDArray[Any]]
"""Named arrays in the layout's order, full (dense) or kept (small) shapes."""

Owners = NDArray[np.int64] | None
"""Owner of every index of an axis, ``(length,)``; -1 and ``None`` mean nobody."""

FIXED = -1
DIGEST_BYTES = 16
MAX_LAYOUT_BYTES = 1 << 22
MAX_AXIS = 1 << 22
MAX_INDICES = 1 << 24
"""Of all axes that have owners together: 128 MB of them."""
MAX_UNITS = 1 << 20
MAX_VALUES = 1 << 33
MAX_AXES = 32
MAX_MACS = 1 << 53
DTYPES = (
    *("bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
)
"""What a tensor may be made of: numbers that NumPy knows."""
_UNREADABLE = (
    zlib.error,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
)


@dataclass(frozen=True, eq=False)
class TensorSpec:
    """One tensor of the model's ``state_dict``.

    Parameters
    ----------
    name : str
        Its ``state_dict`` key.
    shape : tuple of int
        Dense shape.
    dtype : str
        NumPy name of its dtype, such as ``"float32"``.
    trainable : bool
        Parameter (True) or buffer (False). Buffers carry no guidance.
    owners : tuple of Owners
        One entry an axis.
    input_axes : tuple of int (default: ())
        Axes that *consume* units of earlier layers (columns of a weight). All other
        owned axes hold the unit's own parameters.
    macs_per_weight : float (default: 0.0)
        Multiply-accumulates one element costs per example: output positions of a
        convolution, 1 for a linear layer, 0 for what is not multiplied.
    normalized : bool (default: False)
        The tensor feeds a normalisation layer, so its scale does not matter.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    owners: tuple[Owners, ...]
    input_axes: tuple[int, ...] = ()
    macs_per_weight: float = 0.0
    normalized: bool = False

    @property
    def size(self) -> int:
        """Number of elements of the dense tensor."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def own_axes(self) -> tuple[int, ...]:
        """Axes whose indices are a unit's own parameters."""
        return tuple(
            axis
            for axis, owner in enumerate(self.owners)
            if owner is not None and axis not in self.input_axes
        )


@dataclass(frozen=True)
class Group:
    """Units of coupled layers: unit ``first + i`` is the group's ``i``-th.

    Parameters
    ----------
    name : str
        Name of the first layer that produces these units.
    first : int
        Number of its first unit in the model.
    size : int
        How many units it has.
    """

    name: str
    first: int
    size: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Tensors in ``state_dict`` order and the groups of coupled units.

    Raises
    ------
    AutoFlipError
        If an owner names a unit that no group has, or an axis has the wrong length.
    """

    tensors: tuple[TensorSpec, ...]
    groups: tuple[Group, ...]
    by_name: Mapping[str, TensorSpec] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {t.name: t for t in self.tensors})
        _check_unique("tensor", [t.name for t in self.tensors])
        _check_unique("group", [g.name for g in self.groups])
        first = 0
        for group in self.groups:
            if group.first != first or group.size < 1:
                raise AutoFlipError(
                    f"group {group.name!r} must start at unit {first} and hold at "
                    f"least one unit, got start {group.first} and size {group.size}."
                )
            first += group.size
        for spec in self.tensors:
            _check_owners(spec, first)

    @property
    def num_units(self) -> int:
        """Number of prunable units of the model."""
        return sum(group.size for group in self.groups)

    @property
    def num_parameters(self) -> int:
        """Number of trainable values of the dense model."""
        return sum(t.size for t in self.tensors if t.trainable)

    @cached_property
    def fixed(self) -> frozenset[str]:
        """Tensors of layers that no unit touches, such as excluded ones.

        Whatever goes elsewhere, these stay as large as they are.
        """
        touched = {
            _layer_of(spec.name)
            for spec in self.tensors
            if any(o is not None and o.max(initial=FIXED) > FIXED for o in spec.owners)
        }
        names = self.by_name
        return frozenset(name for name in names if _layer_of(name) not in touched)

    @property
    def fixed_layers(self) -> list[str]:
        """Names of the layers that :attr:`fixed` tensors belong to, in their order."""
        names = (_layer_of(name) for name in self.by_name if name in self.fixed)
        return list(dict.fromkeys(names))

    @cached_property
    def digest(self) -> bytes:
        """Sixteen bytes that name this layout."""
        return blake2b(_to_json(self), digest_size=DIGEST_BYTES).digest()

    @cached_property
    def encoded(self) -> bytes:
        """The layout as it travels: see :func:`layout_to_bytes`."""
        return layout_to_bytes(self)


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0]


def _check_unique(kind: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise AutoFlipError(f"every {kind} needs a name of its own, got {names[:8]}.")


def _check_owners(spec: TensorSpec, num_units: int) -> None:
    if len(spec.owners) != len(spec.shape):
        raise AutoFlipError(
            f"tensor {spec.name!r}: {len(spec.shape)} axes need as many owners, "
            f"got {len(spec.owners)}."
        )
    for axis, owner in enumerate(spec.owners):
        if owner is None:
            continue
        if owner.shape != (spec.shape[axis],):
            raise AutoFlipError(
                f"tensor {spec.name!r}, axis {axis}: expected {spec.shape[axis]} "
                f"owners, got an array of shape {owner.shape}."
            )
        if owner.size and (owner.min() < FIXED or owner.max() >= num_units):
            raise AutoFlipError(
                f"tensor {spec.name!r}, axis {axis}: owners must lie in "
                f"[-1, {num_units}), got [{owner.min()}, {owner.max()}]."
            )


def check_arrays(layout: Layout, arrays: Arrays, *, whose: str) -> None:
    """Check that dense arrays are those of the layout's model.

    Parameters
    ----------
    layout : Layout
        The expected model.
    arrays : mapping of str to ndarray
        Dense arrays.
    whose : str
        Where they come from, for the error's first words.

    Raises
    ------
    AutoFlipError
        With every missing, unknown and misshapen tensor in one message.
    """
    faults = [f"{n} is missing" for n in layout.by_name if n not in arrays]
    faults += [f"{n} is unknown" for n in arrays if n not in layout.by_name]
    faults += [
        f"{t.name} has shape {np.shape(arrays[t.name])} instead of {t.shape}"
        for t in layout.tensors
        if t.name in arrays and tuple(np.shape(arrays[t.name])) != t.shape
    ]
    if faults:
        shown = "; ".join(faults[:8]) + ("; ..." if len(faults) > 8 else "")
        raise AutoFlipError(
            f"{whose} do not match the model: {shown}. Give the state_dict of the "
            "very model that AutoFlip was built with."
        )


# --- The bytes of a layout: runs of owners, as deflated JSON ---


def layout_to_bytes(layout: Layout) -> bytes:
    """Encode a layout as deflated JSON, for nodes that do not trace models.

    Parameters
    ----------
    layout : Layout

    Returns
    -------
    bytes
        About 0.5 kB for a small CNN.
    """
    return zlib.compress(_to_json(layout), 9)


def layout_from_bytes(data: bytes) -> Layout:
    """Decode :func:`layout_to_bytes`.

    Raises
    ------
    WireError
        If the bytes are not a layout, or one larger than 4 MiB, or of a model beyond
        this module's ``MAX_`` bounds; those are checked before memory is taken.
    """
    try:
        inflater = zlib.decompressobj()
        text = inflater.decompress(data, MAX_LAYOUT_BYTES)
        surplus = inflater.unconsumed_tail or inflater.unused_data
        if surplus or not inflater.eof:
            raise WireError("the layout is truncated, followed by more, or over 4 MiB.")
        body = json.loads(text)
        groups = tuple(_group_from_json(row) for row in body["groups"])
        _check_bounds(body["tensors"], sum(group.size for group in groups))
        return Layout(tuple(map(_tensor_from_json, body["tensors"])), groups)
    except _UNREADABLE as error:
        raise WireError(f"the layout's bytes cannot be read: {error}") from error


def _to_json(layout: Layout) -> bytes:
    body = {
        "tensors": [_tensor_to_json(spec) for spec in layout.tensors],
        "groups": [[g.name, g.first, g.size] for g in layout.groups],
    }
    return json.dumps(body, separators=(",", ":")).encode()


def _tensor_to_json(spec: TensorSpec) -> list[Any]:
    runs = [None if o is None else _to_runs(o) for o in spec.owners]
    return [
        spec.name,
        list(spec.shape),
        spec.dtype,
        int(spec.trainable),
        runs,
        list(spec.input_axes),
        spec.macs_per_weight,
        int(spec.normalized),
    ]


def _tensor_from_json(row: Sequence[Any]) -> TensorSpec:
    name, shape, dtype, trainable, runs, input_axes, macs, normalized = row
    shape, input_axes = _whole(shape), _whole(input_axes)
    if dtype not in DTYPES or not set(input_axes) <= set(range(len(shape))):
        raise WireError(f"tensor {name!r}: no tensor has {dtype!r} or {input_axes}.")
    if not set(_whole([trainable, normalized])) <= {0, 1} or not 0 <= macs <= MAX_MACS:
        raise WireError(f"tensor {name!r}: expected two flags and MACs, got {row[3:]}.")
    owners = tuple(
        None if r is None else _from_runs(r, length)
        for r, length in zip(runs, shape, strict=True)
    )
    return TensorSpec(
        _name(name),
        shape,
        dtype,
        bool(trainable),
        owners,
        input_axes,
        float(macs),
        bool(normalized),
    )


def _group_from_json(row: Sequence[Any]) -> Group:
    name, first, size = row
    return Group(_name(name), *_whole([first, size]))


def _check_bounds(rows: Sequence[Sequence[Any]], units: int) -> None:
    """Add up what a layout's tensors would take, before any of it is made."""
    values = indices = 0
    for name, shape, _, _, owners, *_ in rows:
        if len(shape) > MAX_AXES or any(not 0 <= n <= MAX_AXIS for n in _whole(shape)):
            raise WireError(f"tensor {name!r}: no model has axes of {shape[:8]}.")
        values += prod(shape)
        owned = zip(owners, shape, strict=True)
        indices += sum(n for owner, n in owned if owner is not None)
    if units > MAX_UNITS or values > MAX_VALUES or indices > MAX_INDICES:
        raise WireError(
            f"the layout has {units} units, {values} values and {indices} indices; up "
            f"to {MAX_UNITS}, {MAX_VALUES} and {MAX_INDICES} are taken."
        )


def _name(name: Any) -> str:
    """Read a name that can be shown and stored."""
    if type(name) is not str or not name.isprintable():
        raise WireError(f"expected a name, got {str(name)[:40]!r}.")
    return name


def _to_runs(owners: NDArray[np.int64]) -> list[list[int]]:
    """Write owners as runs ``[first, count, repeat]``: 0 0 1 1 2 2 is [0, 3, 2]."""
    edges = np.flatnonzero(np.diff(owners, prepend=owners[0] - 1))
    lengths = np.diff(np.append(edges, len(owners)))
    runs: list[list[int]] = []
    for owner, repeat in zip(owners[edges].tolist(), lengths.tolist(), strict=True):
        last = runs[-1] if runs else None
        if last and last[2] == repeat and owner == last[0] + last[1] != 0:
            last[1] += 1
        else:
            runs.append([owner, 1, repeat])
    return runs


def _whole(numbers: Sequence[Any]) -> tuple[int, ...]:
    """Read integers; anything else is an error, not rounded."""
    if any(type(number) is not int for number in numbers):
        raise WireError(f"expected integers, got {list(numbers)[:8]}.")
    return tuple(numbers)


def _from_runs(runs: Sequence[Sequence[int]], length: int) -> NDArray[np.int64]:
    runs = [_whole(run) for run in runs]
    if sum(count * repeat for _, count, repeat in runs) != length or any(
        count < 1 or repeat < 1 for _, count, repeat in runs
    ):
        raise WireError(f"the runs of an axis must cover its {length} indices.")
    parts = [np.repeat(np.arange(f, f + c), r) for f, c, r in runs]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
