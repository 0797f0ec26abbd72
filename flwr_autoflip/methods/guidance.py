"""From how far parameters moved to guidance: Eqs. 7 and 10 of arXiv:2405.10271v3."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AutoFlipError
from ..graph.layout import Arrays, Layout

Report = Mapping[str, NDArray[np.floating]]
"""One node's deviations by tensor name, or their sums by unit under groups' names.

Float32, at least 0. Arrays may be made when they are looked up: functions here read one
tensor of one node at a time.
"""

STACK = 1 << 26
"""Values of all nodes that are sorted at once: 256 MB."""


def deviation(initial: NDArray[Any], final: NDArray[Any]) -> NDArray[np.float32]:
    """Square how far each parameter moved: ``(initial - final)^2`` (Eq. 7).

    Of a tensor before and after exploring; float32, in its shape.

    Examples
    --------
    >>> deviation(np.array([1.0, 2.0]), np.array([1.5, 2.0]))
    array([0.25, 0.  ], dtype=float32)
    """
    return np.square(np.asarray(initial, np.float32) - np.asarray(final, np.float32))


def client_guidance(reports: Sequence[Report]) -> dict[str, NDArray[np.float32]]:
    """Compare nodes at each coordinate: Eq. 10, min-max over nodes, then the mean.

    Parameters
    ----------
    reports : sequence of Report
        Of K >= 2 nodes, all with the same names and shapes.

    Returns
    -------
    dict of str to ndarray
        Guidance in the reports' shapes, float32: in [1/K, 1 - 1/K] where nodes differ,
        as one of them is 0 and one is 1 there, and 0 (for 0/0) where they do not.

    Raises
    ------
    AutoFlipError
        If there are fewer than two reports.

    Examples
    --------
    >>> a, b = {"w": np.float32([0, 2])}, {"w": np.float32([1, 2])}
    >>> client_guidance([a, b])["w"]
    array([0.5, 0. ], dtype=float32)
    """
    if len(reports) < 2:
        raise AutoFlipError(
            f"Eq. 10 compares nodes, and {len(reports)} reported; explore on two or "
            "more, or use method='autoflip'."
        )
    guidance = {}
    for name in reports[0]:
        low = high = np.asarray(reports[0][name])
        total = low.astype(np.float64)
        for report in reports[1:]:
            values = report[name]
            total += values
            low, high = np.minimum(low, values), np.maximum(high, values)
        span = np.subtract(high, low, dtype=np.float64)
        mean = (total / len(reports) - low) / np.where(span > 0, span, 1)
        guidance[name] = np.asarray(np.clip(mean, 0, 1), np.float32)
    return guidance


def layer_guidance(
    reports: Sequence[Report], aggregator: str = "mean", equal_scale: bool = False
) -> dict[str, NDArray[np.float32]]:
    """Average deviations over nodes, then min-max each tensor: the authors' code.

    Parameters
    ----------
    reports : sequence of Report
        At least one, all with the same names and shapes.
    aggregator : str (default: "mean")
        Over nodes; see :func:`parse_aggregator`.
    equal_scale : bool (default: False)
        Divide each node's deviations of a tensor by their mean first, so that none
        decides by its scale. Ours.

    Returns
    -------
    dict of str to ndarray
        Guidance in the reports' shapes, float32, in [0, 1]; 0/0 is 0.

    Raises
    ------
    AutoFlipError
        If there is no report, or on an unknown aggregator.

    Examples
    --------
    >>> a, b = {"w": np.float32([0, 2])}, {"w": np.float32([1, 6])}
    >>> layer_guidance([a, b])["w"]
    array([0., 1.], dtype=float32)
    """
    if not reports:
        raise AutoFlipError("guidance needs at least one node's report, got none.")
    trim, guidance = parse_aggregator(aggregator), {}
    for name in reports[0]:
        mean = _aggregate(reports, name, trim, equal_scale)
        above = mean - mean.min(initial=np.inf)
        guidance[name] = np.asarray(above / (above.max(initial=0) or 1), np.float32)
    return guidance


def _aggregate(
    reports: Sequence[Report], name: str, trim: float, equal_scale: bool
) -> NDArray[np.float64]:
    """Average one tensor's deviations over nodes."""
    first, count = np.asarray(reports[0][name]), len(reports)
    if not trim:
        total = np.zeros(first.shape)
        for report in reports:
            total += _scaled(report[name], equal_scale)
        return total / count
    means, length = np.zeros(first.size), max(1, STACK // count)
    for start in range(0, first.size, length):
        part = slice(start, start + length)
        stack = np.empty((count, means[part].size), np.float32)
        for row, report in zip(stack, reports, strict=True):
            row[:] = _scaled(report[name], equal_scale).ravel()[part]
        means[part] = trimmed_mean(stack, trim)
    return means.reshape(first.shape)


def _scaled(values: NDArray[Any], equal_scale: bool) -> NDArray[Any]:
    """Bring one node's deviations of a tensor to mean 1, if asked to."""
    mean = np.mean(values, dtype=np.float64) if equal_scale and np.size(values) else 0
    return values * np.float32(min(1 / mean, 1e30)) if mean > 0 else np.asarray(values)


def parse_aggregator(value: str) -> float:
    """Read ``"mean"`` (0), ``"median"`` (0.5) or ``"trimmed-mean:0.2"``.

    Gives what :func:`trimmed_mean` leaves out at either end; raises ``AutoFlipError``
    on anything else.
    """
    if value in ("mean", "median"):
        return 0.0 if value == "mean" else 0.5
    try:
        trim = float(str(value).removeprefix("trimmed-mean:"))
    except ValueError:
        trim = 0.0
    if not (str(value).startswith("trimmed-mean:") and 0 < trim < 0.5):
        raise AutoFlipError(
            "aggregator must be 'mean', 'median' or 'trimmed-mean:0.2', a ratio below "
            f"0.5, got {value!r}."
        )
    return trim


def trimmed_mean(values: NDArray[np.floating], trim: float) -> NDArray[np.float64]:
    """Average every coordinate without its lowest and highest values.

    Of values ``(num_nodes, size)``, ``(size,)`` float64. The ratio ``trim`` is left out
    at either end, rounded down; at 0.5 one or two values are left: the median.

    Examples
    --------
    >>> values = np.array([[1.0], [2.0], [6.0], [99.0]])
    >>> trimmed_mean(values, 0.25), trimmed_mean(values, 0.5)
    (array([4.]), array([4.]))
    """
    count = len(values)
    out = min(int(trim * count + 1e-9), (count - 1) // 2)
    if out:
        values = np.partition(values, (out, count - out - 1), axis=0)
    middle: NDArray[np.float64] = values[out : count - out].mean(axis=0, dtype=float)
    return middle


# --- From single parameters to units ---


def sum_by_unit(layout: Layout, values: Arrays) -> NDArray[np.float64]:
    """Add up every unit's own parameters: its slices, not the columns that read it.

    Of dense arrays by tensor name, where absent tensors and buffers count nothing;
    ``(num_units,)`` float64. Raises ``AutoFlipError`` if the layout has no such name.
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
    """Sum deviations by unit, ``(group.size,)`` float32 a group: kB, not a model."""
    return split_by_group(layout, sum_by_unit(layout, report).astype(np.float32))


def split_by_group(layout: Layout, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Cut ``(num_units,)`` into group name -> ``(group.size,)`` views."""
    return {g.name: values[g.first : g.first + g.size] for g in layout.groups}


def unit_scores(layout: Layout, guidance: Arrays) -> dict[str, NDArray[np.float64]]:
    """Score units by the mean guidance of their own parameters.

    Of guidance in parameters' shapes, or already one value a unit under the groups'
    names; group name to ``(group.size,)`` float64.
    """
    by_unit = {group.name: (group.size,) for group in layout.groups}
    if {name: values.shape for name, values in guidance.items()} == by_unit:
        return {g.name: guidance[g.name].astype(np.float64) for g in layout.groups}
    mean = sum_by_unit(layout, guidance) / unit_sizes(layout)
    return split_by_group(layout, mean)


def l1_scores(layout: Layout, weights: Arrays) -> dict[str, NDArray[np.float64]]:
    """Score units by the mean absolute value of their own parameters.

    Of dense weights; group name to ``(group.size,)`` float64.
    """
    sizes = {t.name: np.abs(weights[t.name]) for t in layout.tensors if t.trainable}
    return unit_scores(layout, sizes)
