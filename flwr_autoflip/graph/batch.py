"""What a batch is: an example's arguments, and the axis along which examples lie.

Every other module asks here. The batch is the first tensor with dimensions among a
call's arguments, whatever tuples, lists and dicts they are in; examples lie along its
axis 0, unless the server finds another one by trying: a model treats examples one by
one, so what it makes of two batches at once must be what it makes of each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, product
from typing import Any

import torch
from torch import nn
from torch._C._functorch import is_batchedtensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map_only

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional arguments of a call, and those by keyword."""

MOST_TRIES = 32
"""Ways to double a batch of several tensors that are tried an axis."""


def arguments(example_input: Any) -> Arguments:
    """Turn an example into a call's arguments.

    Parameters
    ----------
    example_input : Tensor, tuple or mapping of str to object
        One positional argument; positional arguments, of which any may be a dict; or
        arguments by keyword.

    Returns
    -------
    args : tuple
    kwargs : dict of str to object

    Examples
    --------
    >>> arguments(({"x": 1}, 2))
    (({'x': 1}, 2), {})
    >>> arguments({"x": 1})
    ((), {'x': 1})
    """
    if isinstance(example_input, tuple):
        return example_input, {}
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    return (example_input,), {}


def map_tensors(make: Callable[[torch.Tensor], Any], given: Arguments) -> Arguments:
    """Replace every tensor of a call's arguments."""
    args, kwargs = tree_map_only(torch.Tensor, make, given)
    return args, kwargs


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """Give the tensors with dimensions in tuples, lists and mappings, in order."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor):
            if leaf.dim():
                yield leaf
        elif isinstance(leaf, Mapping):  # one that torch does not know
            yield from tensors_in(list(leaf.values()))


def batch_size(args: Any, kwargs: Any, axis: int = 0) -> int | None:
    """Count the examples along this axis of a call's first tensor with dimensions.

    None if no tensor tells.

    Examples
    --------
    >>> batch_size((0.5, {"x": torch.zeros(16, 3)}), {})
    16
    >>> batch_size((), {"x": torch.zeros(5, 16, 3)}, axis=1)
    16
    >>> batch_size(("words",), {}) is None
    True
    """
    leaves = tree_leaves((args, kwargs), lambda x: isinstance(x, PackedSequence))
    packed = next((x for x in leaves if isinstance(x, PackedSequence)), None)
    if packed is not None:
        return int(packed.batch_sizes[0])
    first = next(tensors_in(leaves), None)
    if first is None or axis >= first.dim() or is_batchedtensor(first):
        return None  # one example's view under vmap() does not tell either
    return int(first.size(axis))  # nested tensors have no shape


# --- Which axis it is ---


def find_batch_axis(model: nn.Module, one: Arguments, other: Arguments) -> int | None:
    """Find the axis of the first tensor along which examples lie.

    The lowest such that the model, in evaluation mode, makes of two batches at once,
    alike in every shape but not in values, what it makes of each. None if no axis
    fits: examples depend on each other, or on chance.
    """
    pairs = list(zip(tensors_in(one), tensors_in(other), strict=True))
    if not pairs:
        return None
    first, *rest = (tuple(x.shape) for x, _ in pairs)
    with torch.random.fork_rng(devices=[]):  # forward may draw: not from the caller's
        alone = _outputs(model, one)
        for axis, length in enumerate(first):
            for axes in _ways(rest, axis, length):
                if alone and _fits(model, one, pairs, (axis, *axes), alone):
                    return axis
    return None


def _ways(
    shapes: Sequence[tuple[int, ...]], axis: int, length: int
) -> Iterator[tuple[int | None, ...]]:
    """Say along which axis the other tensors may be doubled with the first one."""
    options: list[list[int | None]] = []
    for shape in shapes:
        alike = [a for a, n in enumerate(shape) if n == length]
        alike.sort(key=lambda a: a != axis)
        options.append([*alike, None])
    return islice(product(*options), MOST_TRIES)


def _fits(
    model: nn.Module,
    given: Arguments,
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    axes: Sequence[int | None],
    alone: Sequence[torch.Tensor],
) -> bool:
    """Tell whether a model treats both batches as it treats each of them."""
    swapped, doubled = {}, {}
    for (x, y), axis in zip(pairs, axes, strict=True):
        if axis is not None:
            swapped[id(x)], doubled[id(x)] = y, torch.cat([x, y], axis)
    second, both = (
        _outputs(model, map_tensors(partial(_replaced, new), given))
        for new in (swapped, doubled)
    )
    if not len(alone) == len(second) == len(both):
        return False
    kinds = {_joins(*three) for three in zip(alone, second, both, strict=True)}
    return None not in kinds and True in kinds


def _replaced(new: Mapping[int, torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    return new.get(id(tensor), tensor)


def _outputs(model: nn.Module, given: Arguments) -> list[torch.Tensor]:
    """Run a model; no outputs if it fails."""
    try:
        with torch.no_grad():
            return list(tensors_in(model(*given[0], **given[1])))
    except Exception:
        return []


def _joins(one: torch.Tensor, other: torch.Tensor, both: torch.Tensor) -> bool | None:
    """Tell outputs side by side from one that is always the same; None if neither."""
    if one.shape == both.shape:
        same = same_values(one, both) and same_values(other, both)
        return False if same else None
    for axis in range(one.dim()):
        if one.shape == other.shape and same_values(
            torch.cat([one, other], axis), both
        ):
            return True
    return None


def same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether tensors are alike, but for the order of sums."""
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    tolerance = (1e-6, 1e-9) if one.dtype == torch.float64 else (1e-3, 1e-5)
    return torch.allclose(one, other, *tolerance)
