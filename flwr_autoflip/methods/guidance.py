"""From what explorers report to guidance: Eqs. 7 and 10 of arXiv:2405.10271v3.

A *report* maps names to deviations of one explorer; names are those of trainable
tensors, or of groups when the explorer summed its deviations per unit.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import AutoFlipError
from ..graph.layout import Arrays, Layout
from .statistics import Report as Report
from .statistics import Spread, parts, size_of, statistics_of

Normalization = Literal["client", "layer"]
ClientScale = Literal["tensor", "raw"]


def deviation(initial: NDArray[Any], final: NDArray[Any]) -> NDArray[np.float32]:
    """Square how far each parameter moved: ``(initial - final)^2`` (Eq. 7).

    Parameters
    ----------
    initial, final : ndarray
        A parameter before and after exploring, same shape.

    Returns
    -------
    ndarray
        Same shape, float32, at least 0.

    Examples
    --------
    >>> deviation(np.array([1.0, 2.0]), np.array([1.5, 2.0]))
    array([0.25, 0.  ], dtype=float32)
    """
    moved = np.asarray(initial, np.float32) - np.asarray(final, np.float32)
    return np.square(moved)


def normalize(
    reports: Sequence[Report],
    normalization: Normalization = "layer",
    client_scale: ClientScale = "raw",
    trim: float = 0.0,
) -> dict[str, NDArray[np.float32]]:
    """Combine explorers' deviations into guidance in [0, 1] (Eq. 10).

    Parameters
    ----------
    reports : sequence of Report
        At least one explorer's deviations, all with the same names and shapes. They
        are read a chunk at a time: K reports on disk need no more memory than one.
    normalization : {"client", "layer"} (default: "layer")
        ``"client"`` is the paper's: min-max of every coordinate over the explorers,
        then the mean. ``"layer"`` is the authors' code: the mean over explorers, then
        min-max over each tensor. 0/0 is 0 in both.
    client_scale : {"raw", "tensor"} (default: "raw")
        ``"tensor"`` brings every explorer's deviations to mean 1 in each tensor first,
        so that none decides by its scale.
    trim : float (default: 0)
        Instead of the mean, one without this share of the lowest and of the highest
        values at every coordinate; see :func:`.robust.trimmed_mean`.

    Returns
    -------
    dict of str to ndarray
        Guidance in the reports' shapes, float32, in [0, 1].

    Raises
    ------
    AutoFlipError
        If there is no report, or an unknown normalization.

    Notes
    -----
    With ``"client"`` over K explorers one of them is 0 and one is 1 at every
    coordinate, so guidance lies in [1/K, 1 - 1/K] wherever explorers differ at all.

    Examples
    --------
    >>> a, b = {"w": np.float32([0, 2])}, {"w": np.float32([1, 6])}
    >>> normalize([a, b], "layer")["w"]
    array([0., 1.], dtype=float32)
    >>> normalize([a, b], "client")["w"]
    array([0.5, 0.5], dtype=float32)
    """
    if not reports:
        raise AutoFlipError("guidance needs at least one explorer's report, got none.")
    if normalization not in ("client", "layer"):
        raise AutoFlipError(
            f"normalization must be 'client' or 'layer', got {normalization!r}."
        )
    extremes, scaled = normalization == "client", client_scale == "tensor"
    known = statistics_of(reports, extremes, scaled, trim)
    guidance = {}
    for name, shape in known.shapes.items():
        if normalization == "layer":
            flat = _minmax(known.totals(name), shape, known.count)
        else:
            flat = _minmax_clients(known.spreads(name), shape, known.count)
        guidance[name] = flat.reshape(shape)
    return guidance


def _minmax(
    totals: Iterable[tuple[slice, NDArray[np.float64]]],
    shape: tuple[int, ...],
    count: int,
) -> NDArray[np.float32]:
    """Min-max the means of one tensor over its coordinates.

    A factor cancels. So sums are divided by a power of two, which rounds nothing and
    keeps them within float32; in float64 they would take two models' memory.
    """
    guidance = np.zeros(size_of(shape), np.float32)
    divisor = 2.0 ** (count - 1).bit_length()
    for part, total in totals:
        guidance[part] = total / divisor
    low, high = float(guidance.min(initial=np.inf)), float(guidance.max(initial=0))
    for part in parts(guidance.size):
        above = guidance[part].astype(np.float64) - low
        guidance[part] = above / ((high - low) or 1.0)
    return guidance


def _minmax_clients(
    spreads: Iterable[Spread], shape: tuple[int, ...], count: int
) -> NDArray[np.float32]:
    """Min-max each coordinate over reports, then take the mean."""
    guidance = np.zeros(size_of(shape), np.float32)
    for part, total, low, high in spreads:
        span = np.subtract(high, low, dtype=np.float64)
        np.maximum(span, np.finfo(np.float64).tiny, out=span)  # 0/0 is 0
        above = total / count
        above -= low
        above /= span
        guidance[part] = np.clip(above, 0, 1, out=above)
    return guidance


def sum_by_unit(layout: Layout, values: Arrays) -> NDArray[np.float64]:
    """Add up every unit's own parameters: its slices, not the columns it feeds.

    Parameters
    ----------
    layout : Layout
    values : mapping of str to ndarray
        Dense arrays of trainable tensors; names the layout lacks are an error,
        tensors that are absent count nothing.

    Returns
    -------
    ndarray
        ``(num_units,)`` float64.

    Raises
    ------
    AutoFlipError
        If a name is not one of the layout's.
    """
    if unknown := set(values) - set(layout.by_name):
        raise AutoFlipError(
            f"the model has no tensor named {sorted(unknown)}; use this model's arrays."
        )
    total = np.zeros(layout.num_units)
    for spec in layout.tensors:
        if not spec.trainable or spec.name not in values:
            continue
        for axis in spec.own_axes:
            owner = np.asarray(spec.owners[axis])
            others = tuple(a for a in range(len(spec.shape)) if a != axis)
            slices = values[spec.name].sum(axis=others, dtype=np.float64)
            owned = owner >= 0
            total += np.bincount(owner[owned], slices[owned], minlength=total.size)
    return total


def unit_sizes(layout: Layout) -> NDArray[np.float64]:
    """Count every unit's own parameters, ``(num_units,)`` float64."""
    ones = {t.name: np.broadcast_to(1.0, t.shape) for t in layout.tensors}
    return sum_by_unit(layout, ones)


def report_by_unit(layout: Layout, report: Report) -> dict[str, NDArray[np.float32]]:
    """Sum an explorer's deviations per unit: a few kB instead of a model.

    Parameters
    ----------
    layout : Layout
    report : Report
        Deviations by tensor name.

    Returns
    -------
    dict of str to ndarray
        Group name to ``(group.size,)`` float32.
    """
    return split_by_group(layout, sum_by_unit(layout, report).astype(np.float32))


def split_by_group(layout: Layout, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Cut ``(num_units,)`` into group name -> ``(group.size,)`` views."""
    return {g.name: values[g.first : g.first + g.size] for g in layout.groups}


def unit_scores(layout: Layout, guidance: Arrays) -> dict[str, NDArray[np.float64]]:
    """Score units by the mean guidance of their own parameters.

    Parameters
    ----------
    layout : Layout
    guidance : mapping of str to ndarray
        Parameter-shaped, or already one value a unit under the groups' names.

    Returns
    -------
    dict of str to ndarray
        Group name to ``(group.size,)`` float64 in [0, 1].
    """
    by_unit = {group.name: (group.size,) for group in layout.groups}
    if {name: values.shape for name, values in guidance.items()} == by_unit:
        return {g.name: guidance[g.name].astype(np.float64) for g in layout.groups}
    mean = sum_by_unit(layout, guidance) / unit_sizes(layout)
    return split_by_group(layout, mean)
