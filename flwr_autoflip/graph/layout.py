"""What a model is made of: its tensors, and the units that live or die together.

A *unit* is one output slice of a layer (a filter, a neuron). Units are numbered
through the whole model. Every axis of every tensor says, index by index, which unit
owns it, or that nobody does. That one fact covers flattening (a unit owns a run of
columns), concatenation (an axis is owned by several layers), residual sums (two
layers' slices have one owner) and depthwise convolutions alike, and it makes the kept
part of any tensor a plain product of index sets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AutoFlipError

Arrays = Mapping[str, NDArray[Any]]
"""Named arrays in the layout's order, full (dense) or kept (small) shapes."""

Owners = NDArray[np.int64] | None
"""Owner of every index of an axis, ``(length,)``; -1 and ``None`` mean nobody."""

FIXED = -1
DTYPES = (
    *("bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
)
"""What a tensor may be made of: numbers that NumPy knows."""

Described = tuple[str, tuple[int, ...], str, str]
"""A tensor's name, shape, dtype, and the name of the tensor that it is, or ``""``."""


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
    same_as : str (default: "")
        Name of an earlier tensor that this one is (tied weights). It is no parameter of
        its own, and does not travel.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    owners: tuple[Owners, ...]
    input_axes: tuple[int, ...] = ()
    macs_per_weight: float = 0.0
    normalized: bool = False
    same_as: str = ""

    @property
    def described(self) -> Described:
        """What any two sides that speak of one model have to agree on."""
        return self.name, self.shape, self.dtype, self.same_as

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

    Parameters
    ----------
    tensors : tuple of TensorSpec
    groups : tuple of Group
    batch_axis : int (default: 0)
        Along which examples lie in the first tensor that ``forward`` takes.

    Raises
    ------
    AutoFlipError
        If an owner names a unit that no group has, an axis has the wrong length, or
        a tensor is said to be another that it cannot be.
    """

    tensors: tuple[TensorSpec, ...]
    groups: tuple[Group, ...]
    batch_axis: int = 0
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
        _check_ties(self.tensors)

    @cached_property
    def distinct(self) -> tuple[TensorSpec, ...]:
        """Tensors without second names of them: these have values of their own."""
        return tuple(spec for spec in self.tensors if not spec.same_as)

    def tie(self, arrays: Arrays) -> dict[str, NDArray[Any]]:
        """Give arrays in this order, each second name the array of the first."""
        return {spec.name: arrays[spec.same_as or spec.name] for spec in self.tensors}

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
        """Tensors of layers that no unit touches, such as ignored ones.

        Whatever is pruned elsewhere, these are as large as in the dense model.
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


def _check_ties(tensors: Sequence[TensorSpec]) -> None:
    firsts: dict[str, TensorSpec] = {}
    for spec in tensors:
        if not spec.same_as:
            firsts[spec.name] = spec
            continue
        first = firsts.get(spec.same_as)
        alike = first is not None and (first.shape, first.dtype) == spec.described[1:3]
        if not alike or spec.trainable or any(o is not None for o in spec.owners):
            raise AutoFlipError(
                f"tensor {spec.name!r} cannot be {spec.same_as!r}: a second name comes "
                "after the first, has its shape and dtype, no parameters of its own "
                "and no units."
            )


def check_arrays(layout: Layout, arrays: Arrays, *, whose: str) -> None:
    """Check that dense arrays are those of the layout's model.

    Raises
    ------
    AutoFlipError
        With every missing, unknown and misshapen tensor in one message, which begins
        with ``whose`` they are.
    """
    have = {name: f"{np.shape(array)}" for name, array in arrays.items()}
    want = {spec.name: f"{spec.shape}" for spec in layout.tensors}
    if faults := _faults(have, want):
        raise AutoFlipError(
            f"{whose} do not match the model: {faults}. Give the state_dict of the "
            "very model that AutoFlip was built with."
        )


def difference(have: Mapping[str, str], want: Mapping[str, str]) -> str:
    """Say how a node's tensors differ from the server's, by what is said of each.

    Empty if they are the same, in the same order.
    """
    if list(have.items()) == list(want.items()):
        return ""
    faults = _faults(have, want) or "its tensors stand in another order"
    return (
        f"this node's model is not the server's: {faults}. Use the same model class "
        "and arguments on both sides."
    )


def _faults(have: Mapping[str, str], want: Mapping[str, str]) -> str:
    """Name what is missing, surplus or other; "" if nothing is."""
    faults = [
        f"{name}: expected {want.get(name, 'nothing')}, got {have.get(name, 'nothing')}"
        for name in {**want, **have}
        if want.get(name) != have.get(name)
    ]
    return "; ".join(faults[:8]) + ("; ..." if len(faults) > 8 else "")
