"""What comes back beside trained values, or instead of them, and what all of it shows.

==============  ======================================================================
payload         numbers in the reply's one array
==============  ======================================================================
``gradients``   float32: the trained values; then, of each trainable weight of the kept
                units, pruned single weights included, the size of its summed gradients
``deviations``  float16: of each kept trainable weight how far it moved
``units``       float16: of each unit the root of its own weights' squared moves
==============  ======================================================================

Tensors, or units, are in the layout's order. Float16 has a narrow range: numbers are
multiplied by a power of two, the scale, which travels in the metadata. Roots and sizes
travel, squares are what is meant: that halves the exponents' range.
"""

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError
from ..graph.pack import check_values, split_values
from ..graph.plan import Plan
from ..methods.base import Payload
from ..methods.guidance import Report, report_by_unit
from .encoding import from_half, norm, to_half
from .privacy import ReportPrivacy, add_noise, bound

# --- Node ---


def append_gradients(
    values: NDArray[Any], sums: Mapping[str, NDArray[Any]], plan: Plan
) -> NDArray[Any]:
    """Put the sizes of summed gradients behind a node's values.

    ``sums`` are by parameter name, in small shapes; 0 where one is absent. Gives
    ``(plan.num_values + plan.without_mask().num_parameters,)``.
    """
    behind = [values]
    limit = np.finfo(values.dtype).max
    for spec in plan.layout.tensors:
        if spec.trainable:
            found = sums.get(spec.name, np.zeros(plan.small_shape(spec.name)))
            sizes = np.abs(found).ravel()
            sizes[np.isfinite(sizes) & (sizes > limit)] = limit
            behind.append(sizes.astype(values.dtype))
    return np.concatenate(behind)


def encode_report(
    start: NDArray[Any],
    trained: NDArray[Any],
    plan: Plan,
    payload: Payload,
    privacy: ReportPrivacy | None = None,
) -> tuple[NDArray[np.float16], float]:
    """Turn exploring into what a node sends, and its scale.

    ``start`` and ``trained`` are ``(plan.num_values,)``. With ``privacy`` what is sent
    is bounded and noised; for ``"units"`` alone. ``WireError`` if training diverged.
    """
    moved = _trainable(trained, plan) - _trainable(start, plan)
    if payload == "deviations":
        return to_half(np.abs(moved))
    with np.errstate(over="ignore"):
        squares = np.square(moved)
    dense = dict(ReplyReport(plan, squares.__getitem__))
    report: Report = report_by_unit(plan.layout, dense)
    if privacy is not None:
        report = add_noise(bound(report), privacy.noise_std())
    return to_half(np.sqrt(np.concatenate(list(report.values()))))


def _trainable(values: NDArray[Any], plan: Plan) -> NDArray[Any]:
    pairs = split_values(values, plan)
    return np.concatenate([part for spec, part in pairs if spec.trainable])


# --- Server ---


def split_gradients(
    values: NDArray[Any], plan: Plan
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Part :func:`append_gradients` into trained values and sizes, both checked.

    ``WireError`` on a wrong length or dtype, or gradients that are negative or not
    finite, or whose squares are not.
    """
    count = plan.without_mask().num_parameters
    if values.shape != (plan.num_values + count,):
        raise WireError(
            f"expected {plan.num_values} values and {count} gradients, an array of "
            f"shape {values.shape} came."
        )
    trained, sizes = np.split(values, [plan.num_values])
    check_values(trained, plan)
    with np.errstate(over="ignore"):
        ends = np.square([sizes.min(initial=0), sizes.max(initial=0)], dtype=np.float32)
    if not (np.isfinite(ends).all() and sizes.min(initial=0) >= 0):
        raise WireError("gradients must be at least 0 and finite.")
    return trained, sizes


def check_report(
    values: NDArray[Any], scale: Any, plan: Plan, payload: Payload
) -> float:
    """Check :func:`encode_report`; give the L2 norm of what moved.

    ``WireError`` on a wrong length or dtype, values that are not finite, sizes below 0,
    and reports that say nothing, since nothing moved or everything moved alike.
    """
    units = payload == "units"
    expected = plan.layout.num_units if units else plan.num_parameters
    if values.shape != (expected,) or values.dtype != np.float16:
        got = f"{values.dtype} {values.shape}"
        raise WireError(f"report: expected float16 ({expected},), got {got}.")
    ends = np.array([values.min(initial=0), values.max(initial=0)])
    if not isinstance(scale, float) or not np.isfinite(ends).all():
        raise WireError("report: the scale is missing, or values are NaN or infinite.")
    low, high = from_half(ends, scale)
    with np.errstate(over="ignore"):
        if not np.isfinite(high * high):
            raise WireError("report: deviations overflow at this scale.")
    if low < 0:
        raise WireError(f"report: sizes must be at least 0, got {low:.3g}.")
    if ends[1] == 0:
        raise WireError("report: nothing moved; does train() train?")
    if values.min() == ends[1] and values.size > 1:
        raise WireError("report: everything moved alike, which says nothing.")
    return norm(values) / scale


class ReplyReport(Mapping[str, NDArray[np.float32]]):
    """Squares by tensor name in dense shapes, made of flat ones when looked up.

    ``squares`` gives float32 squares of a slice of the flat values, which hold those of
    buffers as well if ``buffers``. What the plan prunes is 0.
    """

    def __init__(
        self,
        plan: Plan,
        squares: Callable[[slice], NDArray[np.float32]],
        buffers: bool = False,
    ) -> None:
        self._plan, self._squares = plan, squares
        self._places, start = dict[str, slice](), 0
        for spec in plan.layout.distinct:
            if spec.trainable or buffers:
                place = slice(start, start + plan.count(spec.name))
                start = place.stop
                if spec.trainable:
                    self._places[spec.name] = place

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """Make one tensor's."""
        flat, plan = self._squares(self._places[name]), self._plan
        mask, shape = plan.small_mask.get(name), plan.layout.by_name[name].shape
        if mask is None and flat.size == prod(shape):
            return flat.reshape(shape)
        small = np.zeros(plan.small_shape(name), np.float32)
        np.place(small, np.ones(small.shape, bool) if mask is None else mask, flat)
        dense = np.zeros(shape, np.float32)
        plan.put(name, dense, small)
        return dense

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
