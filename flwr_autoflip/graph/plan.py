"""A plan: which units are kept and, only if asked for, which single weights in them."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AutoFlipWarning, KeepError
from .layout import Arrays, Layout, TensorSpec

Keep = Mapping[str, NDArray[np.int64]]
"""Group name to the ascending indices of the units that are kept."""

Mask = Mapping[str, NDArray[np.bool_]]
"""Tensor name to a dense boolean array, True = kept; absent names are all kept."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What one node holds, trains and sends.

    Parameters
    ----------
    layout : Layout
        The dense model.
    keep : Keep
        Kept units of every group.
    mask : Mask (default: none)
        Kept single weights inside kept units.

    Raises
    ------
    KeepError
        If a group is missing, emptied, out of range or not ascending, or a mask does
        not fit its tensor.
    """

    layout: Layout
    keep: Keep
    mask: Mask = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_keep(self.layout, self.keep)
        for name, mask in self.mask.items():
            spec = self.layout.by_name.get(name)
            if spec is None or not spec.trainable:
                raise KeepError(f"mask {name!r}: the model has no such parameter.")
            if mask.shape != spec.shape or mask.dtype != np.bool_:
                raise KeepError(
                    f"mask {name!r}: expected bool {spec.shape}, got {mask.dtype} "
                    f"{mask.shape}; build it from this model's Layout."
                )

    @cached_property
    def alive(self) -> NDArray[np.bool_]:
        """``(num_units,)``: True for kept units."""
        alive = np.zeros(self.layout.num_units, np.bool_)
        for group in self.layout.groups:
            alive[group.first + self.keep[group.name]] = True
        return alive

    @cached_property
    def index(self) -> dict[str, tuple[NDArray[np.int64] | None, ...]]:
        """The index map: for every tensor, the kept indices of each axis.

        ``None`` stands for a whole axis. The small tensor holds the dense one's
        coordinates ``np.ix_(*axes)``, in this order.
        """
        return {t.name: self._kept_axes(t) for t in self.layout.tensors}

    def _kept_axes(self, spec: TensorSpec) -> tuple[NDArray[np.int64] | None, ...]:
        # A trailing True makes owner -1 (nobody) index the last place: always kept.
        kept = np.append(self.alive, True)
        return tuple(
            None if owner is None or kept[owner].all() else np.flatnonzero(kept[owner])
            for owner in spec.owners
        )

    def take(
        self, name: str, dense: NDArray[Any], out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Cut the small tensor out of a dense array.

        Into ``out``, of the small shape and the same dtype; without it give a new
        array, or ``dense`` itself if all of it is kept.
        """
        axes = self.index[name]
        if out is None:
            if all(axis is None for axis in axes):
                return dense
            out = np.empty(self.small_shape(name), dense.dtype)
        _gather(dense, axes, out)
        return out

    def put(self, name: str, dense: NDArray[Any], small: Any) -> None:
        """Write the small tensor (or a scalar) into its place of ``dense``."""
        dense[self._place(name, dense)] = small

    def add(self, name: str, dense: NDArray[Any], small: Any) -> None:
        """Add the small tensor (or a scalar) to its place of ``dense``."""
        dense[self._place(name, dense)] += small

    def _place(self, name: str, dense: NDArray[Any]) -> Any:
        """Give the index that selects the small tensor."""
        axes = self.index[name]
        if all(kept is None for kept in axes):
            return ...
        pairs = zip(axes, dense.shape, strict=True)
        return np.ix_(*(np.arange(n) if kept is None else kept for kept, n in pairs))

    def small_shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor in the small model."""
        spec = self.layout.by_name[name]
        return tuple(
            length if axis is None else len(axis)
            for axis, length in zip(self.index[name], spec.shape, strict=True)
        )

    @cached_property
    def small_mask(self) -> dict[str, NDArray[np.bool_]]:
        """Single-weight masks in the small tensors' shapes; all-kept ones left out."""
        cut = {name: self.take(name, mask) for name, mask in self.mask.items()}
        return {name: mask for name, mask in cut.items() if not mask.all()}

    def count(self, name: str) -> int:
        """How many values of a tensor are kept: these travel; 0 for second names."""
        if self.layout.by_name[name].same_as:
            return 0
        if name in self.small_mask:
            return int(np.count_nonzero(self.small_mask[name]))
        return math.prod(self.small_shape(name))

    @cached_property
    def num_values(self) -> int:
        """Kept values of all tensors, buffers included: what one message carries."""
        return sum(self.count(t.name) for t in self.layout.tensors)

    @cached_property
    def num_parameters(self) -> int:
        """Kept trainable values."""
        return sum(self.count(t.name) for t in self.layout.tensors if t.trainable)

    @cached_property
    def macs(self) -> float:
        """Forward multiply-accumulates an example costs in the small model.

        Single zeros inside it are computed like any other weight, so they count.
        """
        return sum(
            t.macs_per_weight * math.prod(self.small_shape(t.name))
            for t in self.layout.tensors
        )

    def without_mask(self) -> "Plan":
        """Give the same units with every weight inside them, always the same object."""
        return self._whole_units if self.mask else self

    @cached_property
    def _whole_units(self) -> "Plan":
        return Plan(self.layout, self.keep)

    def dense_mask(self, name: str) -> NDArray[np.bool_]:
        """Mark the kept coordinates of one tensor, dense shape, True = kept."""
        spec = self.layout.by_name[name]
        mask = np.zeros(spec.shape, np.bool_)
        self.put(name, mask, self.small_mask.get(spec.same_as or name, True))
        return mask

    def apply(self, arrays: Arrays) -> dict[str, NDArray[Any]]:
        """Zero every trainable value of dense arrays that is not kept.

        That is the masked model (Algorithm 1, line 19 of arXiv:2405.10271v3), which
        computes what the small one computes.
        """
        masked = {
            t.name: np.where(self.dense_mask(t.name), arrays[t.name], 0).astype(
                arrays[t.name].dtype
            )
            if t.trainable
            else arrays[t.name]
            for t in self.layout.distinct
        }
        return self.layout.tie(masked)


def _check_keep(layout: Layout, keep: Keep) -> None:
    names = {group.name for group in layout.groups}
    if set(keep) != names:
        raise KeepError(
            f"keep must name the groups {sorted(names)}, got {sorted(keep)}; build the "
            "plan from this model's Layout."
        )
    for group in layout.groups:
        kept = keep[group.name]
        if not len(kept):
            raise KeepError(f"group {group.name!r}: at least one unit must be kept.")
        if kept[0] < 0 or kept[-1] >= group.size:
            worst = kept[0] if kept[0] < 0 else kept[-1]
            raise KeepError(
                f"group {group.name!r}: keep must lie in [0, {group.size}), got "
                f"{worst}; build the plan from this model's Layout."
            )
        if (np.diff(kept) <= 0).any():
            raise KeepError(f"group {group.name!r}: keep must ascend without repeats.")


def dense_plan(layout: Layout) -> Plan:
    """Build the plan that keeps everything."""
    return Plan(layout, {g.name: np.arange(g.size) for g in layout.groups})


def keep_from_bool(
    kept: Mapping[str, NDArray[np.bool_]],
) -> dict[str, NDArray[np.int64]]:
    """Turn boolean choices a group into ascending indices."""
    return {name: np.flatnonzero(choice) for name, choice in kept.items()}


def warn_if_nothing_pruned(plan: Plan, advice: str) -> None:
    """Warn with :class:`AutoFlipWarning` when a plan keeps every parameter."""
    if plan.num_parameters == plan.layout.num_parameters:
        warnings.warn(
            f"the plan prunes nothing: {advice}", AutoFlipWarning, stacklevel=3
        )


def _gather(
    array: NDArray[Any], axes: Sequence[NDArray[np.int64] | None], out: NDArray[Any]
) -> None:
    """Copy ``array[np.ix_(*axes)]`` into ``out``, four times as fast."""
    cut = [(axis, kept) for axis, kept in enumerate(axes) if kept is not None]
    if not cut:
        np.copyto(out, array)
        return
    # Clipping checks nothing while copying; the indices are known to lie inside.
    for axis, kept in cut[:-1]:
        array = np.take(array, kept, axis, mode="clip")
    axis, kept = cut[-1]
    np.take(array, kept, axis, out=out, mode="clip")
