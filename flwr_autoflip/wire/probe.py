"""A probe: gradients of a round, at weights that went too, behind the values.

Trained values take ``plan.num_values`` places of the one flat array. One magnitude
follows for each trainable weight of the units that stay, single weights that went
included, in the layout's order: what a weight's gradients of the round add up to.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import WireError
from ..graph.pack import check_values
from ..graph.plan import Plan
from ..methods.guidance import Report

# --- Node ---


@contextmanager
def sum_gradients(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Add up each parameter's gradients while any loop trains the model.

    Parameters
    ----------
    model : nn.Module
        Hooks see gradients before a mask or a clipping does.

    Yields
    ------
    dict of str to Tensor
        Parameter name to its sum; names whose gradient never came are absent.
    """
    sums: dict[str, torch.Tensor] = {}

    handles = [
        parameter.register_hook(_Adder(name, sums))  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


class _Adder:
    """Add a gradient to the sum of its parameter, on the gradient's device."""

    def __init__(self, name: str, sums: dict[str, torch.Tensor]) -> None:
        self.name, self.sums = name, sums

    def __call__(self, grad: torch.Tensor) -> None:
        if self.name in self.sums:
            self.sums[self.name].add_(grad)
        else:
            self.sums[self.name] = grad.detach().clone()


def append_probe(
    values: NDArray[np.floating], sums: Mapping[str, torch.Tensor], plan: Plan
) -> NDArray[np.floating]:
    """Put magnitudes of gradients behind a node's values.

    Magnitudes, not squares: half the range of exponents, as with reports.

    Parameters
    ----------
    values : ndarray
        ``(plan.num_values,)``.
    sums : mapping of str to Tensor
        From :func:`sum_gradients`.
    plan : Plan

    Returns
    -------
    ndarray
        ``(plan.num_values + probe_size(plan),)`` of the values' dtype.
    """
    parts = [values]
    limit = np.finfo(values.dtype).max
    for spec in plan.layout.tensors:
        if not spec.trainable:
            continue
        found = sums.get(spec.name)
        sizes = (
            np.zeros(plan.small_shape(spec.name))
            if found is None
            else np.abs(found.cpu().numpy())
        )
        clipped = np.where(np.isfinite(sizes), np.minimum(sizes, limit), sizes)
        parts.append(clipped.ravel().astype(values.dtype))
    return np.concatenate(parts)


# --- Server ---


def probe_size(plan: Plan) -> int:
    """Count the magnitudes of a probe: trainable weights of the units that stay."""
    return plan.without_mask().num_parameters


def split_probe(
    values: NDArray[np.floating], plan: Plan
) -> tuple[NDArray[np.floating], Report]:
    """Part a reply into trained values and squared gradients.

    Parameters
    ----------
    values : ndarray
        From :func:`append_probe`.
    plan : Plan

    Returns
    -------
    values : ndarray
        ``(plan.num_values,)``, checked.
    report : Report
        Tensor name to squares of summed gradients, dense shapes, float32; 0 where a
        unit went.

    Raises
    ------
    WireError
        On a wrong length or dtype, or gradients that are negative or not finite.
    """
    expected = plan.num_values + probe_size(plan)
    if values.shape != (expected,):
        raise WireError(
            f"probe: expected {plan.num_values} values and {probe_size(plan)} "
            f"gradients, an array of shape {values.shape} came."
        )
    trained, sizes = np.split(values, [plan.num_values])
    check_values(trained, plan)
    with np.errstate(over="ignore"):
        squares = np.square(sizes.astype(np.float32))
    if not (np.isfinite(squares).all() and (sizes >= 0).all()):
        raise WireError("probe: gradients must be at least 0 and finite.")
    report, start = {}, 0
    for spec in plan.layout.tensors:
        if spec.trainable:
            shape = plan.small_shape(spec.name)
            count = int(np.prod(shape, dtype=np.int64))
            report[spec.name] = np.zeros(spec.shape, np.float32)
            part = squares[start : start + count].reshape(shape)
            plan.put(spec.name, report[spec.name], part)
            start += count
    return trained, report
