"""Proof of a layout: the masked model and the small one must compute the same."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .errors import AutoFlipWarning, UnsupportedLayerError
from .layout import Layout
from .plan import Plan, dense_plan
from .shrink import shrink


def verified_layout(
    model: nn.Module,
    inputs: tuple[Any, ...],
    build: Callable[[frozenset[str]], Layout],
) -> Layout:
    """Build a layout and prove it on the model; leave dense what fails.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, on the CPU; left untouched.
    inputs : tuple
        Of ``forward``.
    build : callable
        Names of groups to leave dense -> Layout.

    Returns
    -------
    Layout

    Raises
    ------
    UnsupportedLayerError
        If nothing can be pruned, or the whole fails where no group alone does.

    Warns
    -----
    AutoFlipWarning
        For every group that is left dense.
    """
    layout = build(frozenset())
    model, inputs = _randomized(model, inputs)
    faults: dict[str, str] = {}
    if _fault(model, inputs, _half_plan(layout, {g.name for g in layout.groups})):
        for group in layout.groups:
            if fault := _fault(model, inputs, _half_plan(layout, {group.name})):
                faults[group.name] = fault
        layout = build(frozenset(faults))
        if fault := _fault(
            model, inputs, _half_plan(layout, {g.name for g in layout.groups})
        ):
            raise UnsupportedLayerError(
                f"the shrunk model does not compute what the masked one does: {fault}. "
                "Exclude layers by name, exclude=(...), until it does."
            )
    if not layout.groups:
        raise UnsupportedLayerError(
            "the model has no prunable unit: every layer is an output, is excluded or "
            f"has a size that forward fixes ({faults or 'none'}). AutoFLIP needs at "
            "least one hidden layer."
        )
    for name, fault in faults.items():
        warnings.warn(
            f"group {name!r} stays dense, since forward depends on its size: {fault} "
            "If forward reshapes with fixed numbers, write x.flatten(1) instead.",
            AutoFlipWarning,
            stacklevel=4,
        )
    return layout


def _randomized(
    model: nn.Module, inputs: tuple[Any, ...]
) -> tuple[nn.Module, tuple[Any, ...]]:
    """Give every value a generic size, so that no zero hides a fault."""
    generator = torch.Generator().manual_seed(0)
    if _runs(double := copy.deepcopy(model).double(), _as_double(inputs)):
        model, inputs = double, _as_double(inputs)
    else:  # forward casts to float32 itself
        model = copy.deepcopy(model)

    def noise(tensor: torch.Tensor, low: float, high: float) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        unit = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        return (low + (high - low) * unit).to(tensor.dtype)

    with torch.no_grad():
        for parameter in model.parameters():
            bound = (3 / max(1, parameter[0].numel() if parameter.dim() else 1)) ** 0.5
            parameter.copy_(noise(parameter, -bound, bound))
        for buffer in model.buffers():
            buffer.copy_(noise(buffer, 0.5, 1.5))
    # Positive inputs: a root or a logarithm of them is a number.
    drawn = (noise(x, 0.1, 1.1) if isinstance(x, torch.Tensor) else x for x in inputs)
    return model, tuple(drawn)


def _as_double(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in inputs
    )


def _runs(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    try:
        with torch.no_grad():
            model(*inputs)
    except RuntimeError:
        return False
    return True


def _half_plan(layout: Layout, names: set[str]) -> Plan:
    """Drop a random half of the units of the named groups."""
    generator = np.random.default_rng(0)
    keep = dict(dense_plan(layout).keep)
    for group in layout.groups:
        if group.name in names:
            drawn = generator.permutation(group.size)[: (group.size + 1) // 2]
            keep[group.name] = np.sort(drawn)
    return Plan(layout, keep)


def _fault(model: nn.Module, inputs: tuple[Any, ...], plan: Plan) -> str:
    """Say how the shrunk model differs from the masked one; "" if it does not."""
    masked = copy.deepcopy(model)
    arrays = plan.apply({n: t.numpy() for n, t in model.state_dict().items()})
    masked.load_state_dict({n: torch.as_tensor(a) for n, a in arrays.items()})
    with torch.no_grad():
        expected = tree_leaves(masked(*inputs))
        try:
            got = tree_leaves(shrink(model, plan)(*inputs))
        except Exception as error:
            return f"{error}"
    if len(got) != len(expected):
        return "the number of outputs differs."
    for one, other in zip(expected, got, strict=True):
        if isinstance(one, torch.Tensor) and not _same(one, other):
            return "outputs differ."
    return ""


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    exact = one.dtype == torch.float64
    tolerance = (1e-6, 1e-9) if exact else (1e-3, 1e-5)
    return one.shape == other.shape and torch.allclose(one, other, *tolerance)
