"""Proof of a layout: the masked model and the small one must compute the same."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ...errors import AutoFlipWarning, UnsupportedLayerError
from ..batch import Arguments, arguments, map_tensors, same_values
from ..layout import Layout
from ..plan import Plan, dense_plan
from ..shrink import shrink


def verified_layout(
    model: nn.Module, given: Arguments, build: Callable[[frozenset[str]], Layout]
) -> Layout:
    """Build a layout and prove it on the model; leave dense, and say, what fails.

    Parameters
    ----------
    model, given
        As :func:`randomized` gives them; left untouched.
    build : callable
        Names of groups to leave dense -> Layout.

    Raises
    ------
    UnsupportedLayerError
        If nothing can be pruned, or the whole fails where no group alone does.
    """
    layout = build(frozenset())
    faults: dict[str, str] = {}
    if _fault(model, given, _half_plan(layout)):
        for group in layout.groups:
            if fault := _fault(model, given, _half_plan(layout, group.name)):
                faults[group.name] = fault
        layout = build(frozenset(faults))
        if fault := _fault(model, given, _half_plan(layout)):
            raise UnsupportedLayerError(
                f"the shrunk model does not compute what the masked one does: {fault} "
                "Name layers in ignored_layers=(...) until it does."
            )
    if not layout.groups:
        raise UnsupportedLayerError(
            "the model has no prunable unit: every layer is an output, is ignored or "
            f"has a size that forward fixes ({faults or 'none'}). AutoFLIP needs at "
            "least one hidden layer."
        )
    for name, fault in faults.items():
        warnings.warn(
            f"group {name!r} stays dense, since forward depends on its size: {fault}",
            AutoFlipWarning,
            stacklevel=3,
        )
    return layout


def answering_groups(
    model: nn.Module, example_input: Any, layout: Layout
) -> tuple[str, ...]:
    """Name groups whose removed units still answer where their weights are 0.

    A sigmoid of nothing is .5: in the masked model, which apps behind a mod train, the
    layer behind it would learn from removed units, in the small model it cannot.
    Where all is zero that a plan removes, a gradient there tells.

    Parameters
    ----------
    model : nn.Module
        Dense; left untouched: a copy runs, in evaluation mode, on the CPU.
    example_input : Tensor, tuple or mapping of str to object
        What its ``forward`` takes.
    layout : Layout

    Returns
    -------
    tuple of str
        In the layout's order; empty if no gradient can be computed.
    """
    given = map_tensors(lambda x: x.cpu(), arguments(example_input))
    model = copy.deepcopy(model).cpu().eval()
    names = [group.name for group in layout.groups]
    found: set[str] = set()
    # What stands behind a unit may be ReLUs that are all dead, if they are few.
    narrow = any(group.size < 32 for group in layout.groups)
    for seed in range(3 if narrow else 1):
        drawn = randomized(model, given, seed)
        if _learns_from_removed(*drawn, _half_plan(layout)):
            for name in set(names) - found:
                if _learns_from_removed(*drawn, _half_plan(layout, name)):
                    found.add(name)
    return tuple(name for name in names if name in found)


def _learns_from_removed(model: nn.Module, given: Arguments, plan: Plan) -> bool:
    """Tell whether training would move what a plan removes from 0."""
    kept = {
        t.name: torch.as_tensor(plan.dense_mask(t.name)) for t in plan.layout.tensors
    }
    masked = copy.deepcopy(model)  # buffers, too, as a mod gives them to its app
    masked.load_state_dict({n: t * kept[n] for n, t in model.state_dict().items()})
    try:
        with _seeded(0):
            leaves = tree_leaves(masked(*given[0], **given[1]))
        sums = [
            (x.detach().cos() * x).sum()  # another weight for every output
            for x in leaves
            if isinstance(x, torch.Tensor) and x.requires_grad
        ]
        torch.autograd.backward(torch.stack(sums).sum())
    except RuntimeError:
        return False
    return any(
        parameter.grad is not None and bool(parameter.grad[~kept[name]].any())
        for name, parameter in masked.named_parameters()
    )


def randomized(
    model: nn.Module, given: Arguments, seed: int = 0
) -> tuple[nn.Module, Arguments]:
    """Give a copy and inputs of generic values, so that no zero hides a fault.

    In float64 if the model runs there.
    """
    generator = torch.Generator().manual_seed(seed)
    copied = copy.deepcopy(model).double()
    try:
        double = map_tensors(_as_double, given)
        _outputs(copied, double)
        given = double
    except RuntimeError:  # forward casts to float32 itself
        copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            bound = (3 / max(1, parameter[0].numel() if parameter.dim() else 1)) ** 0.5
            parameter.copy_(_noise(parameter, generator, -bound, bound))
        for buffer in copied.buffers():
            buffer.copy_(_noise(buffer, generator, 0.5, 1.5))
    # Positive inputs: a root or a logarithm of them is a number.
    return copied, map_tensors(lambda x: _noise(x, generator, 0.1, 1.1), given)


def _as_double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def another(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw an input like another: integers are the same ones in another order."""
    if tensor.is_floating_point():
        return _noise(tensor, generator, 0.1, 1.1)
    return tensor.flip(tuple(range(tensor.dim())))


def _noise(
    tensor: torch.Tensor, generator: torch.Generator, low: float, high: float
) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    unit = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    return (low + (high - low) * unit).to(tensor.dtype)


def _half_plan(layout: Layout, only: str = "") -> Plan:
    """Drop a random half of the units of every group, or of one."""
    generator = np.random.default_rng(0)
    keep = dict(dense_plan(layout).keep)
    for group in layout.groups:
        if only in ("", group.name):
            drawn = generator.permutation(group.size)[: (group.size + 1) // 2]
            keep[group.name] = np.sort(drawn)
    return Plan(layout, keep)


_RESHAPES = "If forward reshapes with fixed numbers, write x.flatten(1) instead."


def _fault(model: nn.Module, given: Arguments, plan: Plan) -> str:
    """Say how the shrunk model differs from the masked one; "" if it does not."""
    masked = copy.deepcopy(model)
    arrays = plan.apply({n: t.numpy() for n, t in model.state_dict().items()})
    masked.load_state_dict({n: torch.as_tensor(a) for n, a in arrays.items()})
    expected = _outputs(masked, given)
    try:
        got = _outputs(shrink(model, plan), given)
    except Exception as error:
        return f"{str(error).rstrip('.')}. {_RESHAPES}"
    if len(got) != len(expected):
        return "the number of outputs differs."
    if _all_same(expected, got):
        return ""
    if not _all_same(expected, _outputs(masked, given, seed=1)):
        return (
            "forward draws random numbers, as many as it has units, so that outputs "
            "cannot be compared."
        )
    return f"outputs differ. {_RESHAPES}"


def _outputs(model: nn.Module, given: Arguments, seed: int = 0) -> list[torch.Tensor]:
    """Run a model that may draw random numbers; the caller's generator stays."""
    with torch.no_grad(), _seeded(seed):
        leaves = tree_leaves(model(*given[0], **given[1]))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _all_same(ones: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(same_values(x, y) for x, y in zip(ones, others, strict=True))
