"""How unit labels pass elementwise operators, changes of shape and reductions."""

import math

import numpy as np
import torch

from .propagate import Axes, Call, Flow, Labels, Units, fixed, rule

# --- Elementwise and shape ---


@rule(
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "leaky_relu",
    "_prelu_kernel",
    "native_dropout",
)
def pointwise(call: Call) -> Flow:
    """Elementwise: aligned indices of all tensor arguments are one unit."""
    shape = call.out.shape
    out: Axes = [fixed(length) for length in shape]
    for axis in range(len(shape)):
        seen: Labels | None = None
        for arg in call.args:
            if not isinstance(arg, torch.Tensor):
                continue
            own = axis - (len(shape) - arg.dim())
            if own < 0 or (arg.shape[own] == 1 and shape[axis] != 1):
                continue
            labels = call.flow_of(arg).axes[own]
            if seen is not None:
                call.units.couple(seen, labels)
            seen = labels
        out[axis] = seen if seen is not None else out[axis]
    return Flow(out)


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
def _like(call: Call) -> Flow:
    return Flow(call.axes(0))


@rule("clone", "detach", "alias", "contiguous", "_to_copy", "lift_fresh", "dropout")
def _same(call: Call) -> Flow:
    return call.flow(0)


@rule("view", "reshape", "_unsafe_view", "flatten", "unsqueeze", "squeeze")
def _reshape(call: Call) -> Flow:
    axes = call.axes(0)
    return Flow(_reshape_axes(call.units, axes, list(call.out.shape)))


@rule("as_strided")
def _as_strided(call: Call) -> Flow:
    """Let a change of memory format pass, as channels-last pooling makes one."""
    before, axes = call.args[0], call.axes(0)
    if before.shape == call.out.shape and torch.equal(before, call.out):
        return Flow(axes)
    call.units.freeze(*axes)
    return Flow([fixed(length) for length in call.out.shape])


def _reshape_axes(units: Units, axes: Axes, shape: list[int]) -> Axes:
    """Match old and new axes block by block; each block has equal products."""
    old, out = [labels for labels in axes if len(labels) != 1], []
    new = [length for length in shape if length != 1]
    blocks: list[Labels] = []
    while old:
        left, right = [old.pop(0)], [new.pop(0)]
        while (a := math.prod(map(len, left))) != (b := math.prod(right)):
            if a < b:
                left.append(old.pop(0))
            else:
                right.append(new.pop(0))
        blocks += _regroup(units, left, right)
    for length in shape:
        out.append(fixed(1) if length == 1 else blocks.pop(0))
    return out


def _regroup(units: Units, left: Axes, right: list[int]) -> Axes:
    if len(left) == 1 and len(right) == 1:
        return left
    owned = [i for i, labels in enumerate(left) if not units.is_frozen(labels)]
    if len(owned) == 1 and len(right) == 1:  # flatten: a unit owns a run of columns
        shape = [1] * len(left)
        shape[owned[0]] = -1
        full = left[owned[0]].reshape(shape)
        return [np.broadcast_to(full, [len(labels) for labels in left]).ravel()]
    if len(left) == 1 and owned:  # unflatten: one new axis keeps the labels
        grid = left[0].reshape(right)
        for axis, length in enumerate(right):
            line = np.moveaxis(grid, axis, 0).reshape(length, -1)
            if axis == 0 and len(right) == 2:
                for column in line.T[1:]:
                    units.couple(line[:, 0], column)
                return [line[:, 0].copy(), fixed(right[1])]
    units.freeze(*left)
    return [fixed(length) for length in right]


@rule("t", "transpose", "permute", "numpy_T")
def _permute(call: Call) -> Flow:
    flow = call.flow(0)
    rank = len(flow.axes)
    order = list(range(rank))
    if len(call.args) == 1:
        order.reverse()
    elif len(call.args) == 3:
        a, b = call.args[1] % rank, call.args[2] % rank
        order[a], order[b] = order[b], order[a]
    else:
        order = [axis % rank for axis in call.args[1]]
    source = flow.source
    if source is not None:
        source = (source[0], tuple(source[1][axis] for axis in order))
    return Flow([flow.axes[axis] for axis in order], source)


@rule("expand")
def _expand(call: Call) -> Flow:
    axes, shape = call.axes(0), call.out.shape
    axes = [fixed(1)] * (len(shape) - len(axes)) + axes
    return Flow(
        [
            labels if len(labels) == length else fixed(length)
            for labels, length in zip(axes, shape, strict=True)
        ]
    )


@rule("cat")
def _cat(call: Call) -> Flow:
    flows = [call.flow_of(tensor) for tensor in call.args[0]]
    dim = call.arg(1, 0) % len(call.out.shape)
    axes = list(flows[0].axes)
    for flow in flows[1:]:
        for axis, labels in enumerate(flow.axes):
            if axis != dim:
                call.units.couple(axes[axis], labels)
    axes[dim] = np.concatenate([flow.axes[dim] for flow in flows])
    return Flow(axes, producers=frozenset().union(*(f.producers for f in flows)))


@rule("stack")
def _stack(call: Call) -> Flow:
    flows = [call.flow_of(tensor) for tensor in call.args[0]]
    for flow in flows[1:]:
        for labels, others in zip(flows[0].axes, flow.axes, strict=True):
            call.units.couple(labels, others)
    axes = list(flows[0].axes)
    axes.insert(call.arg(1, 0) % len(call.out.shape), fixed(len(flows)))
    return Flow(axes)


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
def _new(call: Call) -> Flow:
    return Flow([fixed(length) for length in call.out.shape])


@rule("split", "split_with_sizes", "chunk")
def _split(call: Call) -> list[Flow]:
    axes = call.axes(0)
    dim = call.arg(2, 0) % len(axes)
    flows, start = [], 0
    for part in call.out:
        stop = start + part.shape[dim]
        cut = list(axes)
        cut[dim] = axes[dim][start:stop]
        flows.append(Flow(cut))
        start = stop
    return flows


@rule("slice")
def _slice(call: Call) -> Flow:
    axes = call.axes(0)
    dim = call.arg(1, 0) % len(axes)
    axes[dim] = axes[dim][call.arg(2) : call.arg(3) : call.arg(4, 1)]
    return Flow(axes)


@rule("select")
def _select(call: Call) -> Flow:
    axes = call.axes(0)
    call.units.freeze(axes.pop(call.args[1] % len(axes)))
    return Flow(axes)


@rule("constant_pad_nd", "reflection_pad2d", "replication_pad2d")
def _pad(call: Call) -> Flow:
    """Let axes of unchanged length pass; pin down those that change."""
    axes, out = call.axes(0), []
    for labels, length in zip(axes, call.out.shape, strict=True):
        if len(labels) == length:
            out.append(labels)
        else:
            call.units.freeze(labels)
            out.append(fixed(length))
    return Flow(out)


# --- Reductions ---


def _reduced(call: Call) -> Flow:
    axes = call.axes(0)
    dims = call.arg(1)
    dims = list(range(len(axes))) if dims is None else np.atleast_1d(dims).tolist()
    reduced = {dim % len(axes) for dim in dims}
    call.units.freeze(*(axes[axis] for axis in reduced))
    keepdim = len(call.out.shape) == len(axes)
    kept = [
        fixed(1) if axis in reduced else labels
        for axis, labels in enumerate(axes)
        if keepdim or axis not in reduced
    ]
    return Flow(kept)


rule("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm")(_reduced)


@rule("_softmax", "_log_softmax", "softmax", "log_softmax")
def _softmax(call: Call) -> Flow:
    axes = call.axes(0)
    call.units.freeze(axes[call.args[1] % len(axes)])
    return Flow(axes)
