"""What an explorer sends: its update, its size, or sums a unit, in 16 bits.

Or its plain weights, in 32: what a mod that clips or noises weights needs to see.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError
from ..graph.layout import Arrays, Layout, TensorSpec
from ..graph.pack import cast_exactly, clear_rounding_inplace, pack, unpack_small
from ..graph.plan import dense_plan
from ..methods.guidance import Report, deviation, report_by_unit, split_by_group
from ..methods.statistics import parts
from .half import from_half, to_half
from .privacy import ReportPrivacy, privatize

Payload = Literal["update", "deviation", "units", "weights"]
PAYLOADS: tuple[Payload, ...] = ("update", "deviation", "units", "weights")
WITH_MODEL: tuple[Payload, ...] = ("update", "weights")
"""Payloads that tell the explorer's model, so that a warm start is possible."""

HALF_ROUNDING = 2**-10
"""So far below 0, of the largest, may 16 bits carry a variance that moved."""

PRIVATE: tuple[Payload, ...] = ("units", "deviation")
"""Payloads that a node can noise: sizes alone."""


def encode_report(
    initial: Arrays,
    final: Arrays,
    layout: Layout,
    payload: Payload,
    privacy: ReportPrivacy | None = None,
) -> tuple[NDArray[Any], float]:
    """Turn exploring into what an explorer sends, and its scale.

    ``"deviation"`` and ``"units"`` send square roots, which halves the exponents'
    range; the server squares them.

    Parameters
    ----------
    initial, final : mapping of str to ndarray
        Dense arrays before and after.
    layout : Layout
    payload : {"update", "deviation", "units", "weights"}
    privacy : ReportPrivacy, optional
        Bound and noise what is sent; with ``"units"`` and ``"deviation"``.

    Returns
    -------
    values : ndarray
        Float16: all tensors' updates, trainable tensors' ``|update|``, or one root of
        summed deviations a unit. Float32: all tensors' values after exploring.
    scale : float
        1 for weights.
    """
    if payload == "weights":
        return pack(final, dense_plan(layout)), 1.0
    trainable = [t.name for t in layout.tensors if t.trainable]
    if payload == "units" or privacy is not None:
        report: Report = {n: deviation(initial[n], final[n]) for n in trainable}
        if payload == "units":
            report = report_by_unit(layout, report)
        if privacy is not None:
            report = privatize(report, privacy)
        return to_half(np.sqrt(np.concatenate([v.ravel() for v in report.values()])))
    names = [t.name for t in _sent(layout, payload)]
    parts = [(final[n].astype(np.float64) - initial[n]).ravel() for n in names]
    values = np.concatenate(parts)
    return to_half(values if payload == "update" else np.abs(values))


def check_report(
    values: NDArray[Any], scale: Any, layout: Layout, payload: Payload, initial: Arrays
) -> float:
    """Check what an explorer sent, without making its deviations.

    Parameters
    ----------
    values : ndarray
        From :func:`encode_report`.
    scale : float
    layout : Layout
    payload : {"update", "deviation", "units", "weights"}
    initial : mapping of str to ndarray
        Dense arrays that exploring started from.

    Returns
    -------
    float
        L2 norm of what moved: trainable tensors only.

    Raises
    ------
    WireError
        On a wrong length or dtype, values that are not finite, sizes below 0, and
        reports that say nothing, since nothing moved or everything moved alike.
    """
    if payload == "weights":
        report, _ = _compare(initial, unpack_small(values, dense_plan(layout)), layout)
        return _check_moved([np.sqrt(moved) for moved in report.values()])
    specs = _sent(layout, payload)
    expected = layout.num_units if payload == "units" else sum(t.size for t in specs)
    if values.shape != (expected,) or values.dtype != np.float16:
        got = f"{values.dtype} {values.shape}"
        raise WireError(f"report: expected float16 ({expected},), got {got}.")
    ends = values.min(initial=0), values.max(initial=0)
    if not isinstance(scale, float) or not np.isfinite(ends).all():
        raise WireError("report: the scale is missing, or values are NaN or infinite.")
    moved = from_half(np.array(ends), scale)
    if not np.isfinite(moved).all():
        raise WireError("report: values overflow at this scale.")
    if payload != "update" and moved[0] < 0:
        raise WireError(f"report: sizes must be at least 0, got {moved[0]:.3g}.")
    with np.errstate(over="ignore"):
        squares = np.square(moved)
    if not np.isfinite(squares).all():
        raise WireError("report: deviations overflow at this scale.")
    if payload == "update":
        _check_ended(values, scale, layout, initial)
    if payload != "update":
        return _check_moved([values]) / scale
    pairs = zip(specs, np.split(values, _ends(specs)), strict=True)
    return _check_moved([part for spec, part in pairs if spec.trainable]) / scale


def _check_ended(
    values: NDArray[Any], scale: float, layout: Layout, initial: Arrays
) -> None:
    """Check that the explorer's model fits into dtypes smaller than a report's."""
    parts_of = np.split(values, _ends(layout.distinct))
    for spec, part in zip(layout.distinct, parts_of, strict=True):
        if spec.dtype not in ("float32", "float64"):
            ended = initial[spec.name].ravel() + from_half(part, scale)
            cast_exactly(ended, spec.dtype)


def _check_moved(tensors: Sequence[NDArray[Any]]) -> float:
    """Check that values differ in size; give their norm."""
    low, high, total = np.inf, 0.0, 0.0
    flat = (values.reshape(-1) for values in tensors)
    for sizes in (np.abs(v[part]) for v in flat for part in parts(v.size)):
        low, high = min(low, sizes.min()), max(high, sizes.max())
        total += float(np.square(sizes, dtype=np.float64).sum())
    if high == 0:
        raise WireError("report: nothing moved; does train() train?")
    if low == high and sum(values.size for values in tensors) > 1:
        raise WireError("report: everything moved alike, which says nothing.")
    return float(np.sqrt(total))


def decode_report(
    values: NDArray[Any], scale: Any, layout: Layout, payload: Payload, initial: Arrays
) -> tuple[Report, dict[str, NDArray[Any]] | None]:
    """Turn what an explorer sent into deviations, and into its model if it sent one.

    Parameters
    ----------
    values : ndarray
        Passed :func:`check_report`; so did the others.
    scale : float
    layout : Layout
    payload : {"update", "deviation", "units", "weights"}
    initial : mapping of str to ndarray

    Returns
    -------
    report : Report
        By tensor name, or by group name with ``"units"``.
    final : dict of str to ndarray or None
        The explorer's model, with ``"update"`` and ``"weights"``.
    """
    if payload == "weights":
        return _compare(initial, unpack_small(values, dense_plan(layout)), layout)
    if payload == "units":
        return split_by_group(layout, np.square(from_half(values, scale))), None
    specs = _sent(layout, payload)
    report, final = {}, {}
    for spec, part in zip(specs, np.split(values, _ends(specs)), strict=True):
        moved = from_half(part, scale).reshape(spec.shape)
        if payload == "update":
            ended = np.asarray(initial[spec.name] + moved)
            clear_rounding_inplace(spec, ended, HALF_ROUNDING)
            final[spec.name] = cast_exactly(ended, spec.dtype)
        if spec.trainable:
            report[spec.name] = np.square(moved, out=moved)
    return report, layout.tie(final) if payload == "update" else None


def _sent(layout: Layout, payload: Payload) -> list[TensorSpec]:
    return [t for t in layout.distinct if payload == "update" or t.trainable]


def _ends(specs: Sequence[TensorSpec]) -> NDArray[np.int64]:
    """Where tensors of a flat array end, but for the last."""
    return np.cumsum([t.size for t in specs])[:-1]


def _compare(
    initial: Arrays, final: dict[str, NDArray[Any]], layout: Layout
) -> tuple[Report, dict[str, NDArray[Any]]]:
    names = [t.name for t in layout.tensors if t.trainable]
    with np.errstate(over="ignore"):
        report = {name: deviation(initial[name], final[name]) for name in names}
    if not all(np.isfinite(moved).all() for moved in report.values()):
        raise WireError("report: deviations overflow.")
    return report, final
