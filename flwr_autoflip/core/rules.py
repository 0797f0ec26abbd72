"""One small rule an ATen operator: how unit labels pass through it."""

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
    gone = {dim % len(axes) for dim in dims}
    call.units.freeze(*(axes[axis] for axis in gone))
    keepdim = len(call.out.shape) == len(axes)
    kept = [
        fixed(1) if axis in gone else labels
        for axis, labels in enumerate(axes)
        if keepdim or axis not in gone
    ]
    return Flow(kept)


rule("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm")(_reduced)


@rule("_softmax", "_log_softmax", "softmax", "log_softmax")
def _softmax(call: Call) -> Flow:
    axes = call.axes(0)
    call.units.freeze(axes[call.args[1] % len(axes)])
    return Flow(axes)


# --- Layers ---


@rule("convolution", "_convolution")
def _convolution(call: Call) -> Flow:
    units = call.units
    weight, inputs = call.flow(1), call.axes(0)
    transposed, groups = call.args[6], call.args[8]
    units.freeze(*inputs[2:], *weight.axes[2:])
    if transposed:
        produced, consumed = weight.axes[1], weight.axes[0]
        if groups != 1:
            units.freeze(produced, consumed, inputs[1])
    else:
        produced, consumed = weight.axes[0], weight.axes[1]
    if groups == 1:
        units.couple(inputs[1], consumed)
        _consume(units, weight, 0 if transposed else 1)
    elif not transposed:
        _couple_groups(units, inputs[1], produced, consumed, groups)
        _consume(units, weight, 1)
    if isinstance(call.args[2], torch.Tensor):
        units.couple(produced, call.flow(2).axes[0])
    out = call.out.shape
    produced_axis = fixed(out[1]) if transposed and groups != 1 else produced
    spatial = call.args[0].shape if transposed else out
    _count_macs(units, weight, float(out[0] * math.prod(spatial[2:])))
    axes = [inputs[0], produced_axis, *(fixed(n) for n in out[2:])]
    return Flow(axes, producers=_names(weight))


def _couple_groups(
    units: Units, inputs: Labels, produced: Labels, consumed: Labels, groups: int
) -> None:
    into, outof = inputs.reshape(groups, -1), produced.reshape(groups, -1)
    if into.shape[1] == 1:  # depthwise: a channel goes with all it produces
        units.freeze(consumed)
        for column in outof.T:
            units.couple(into[:, 0], column)
        return
    # Every group must lose as many channels as the others: the same places in each.
    for row in into:
        units.couple(row, consumed)
    for row in outof[1:]:
        units.couple(outof[0], row)


def _consume(units: Units, weight: Flow, axis: int) -> None:
    if weight.source is not None:
        name, source_axes = weight.source
        units.input_axes.add((name, source_axes[axis]))


def _count_macs(units: Units, weight: Flow, positions: float) -> None:
    if weight.source is not None:
        name = weight.source[0]
        units.macs[name] = units.macs.get(name, 0.0) + positions


@rule("addmm", "addbmm", "baddbmm")
def _addmm(call: Call) -> Flow:
    out = _product(call, 1, 2)
    bias = call.axes(0)
    call.units.couple(bias[-1], out.axes[-1])
    return out


@rule("mm", "bmm", "matmul")
def _mm(call: Call) -> Flow:
    return _product(call, 0, 1)


def _product(call: Call, left: int, right: int) -> Flow:
    a, b = call.flow(left), call.flow(right)
    call.units.couple(a.axes[-1], b.axes[-2])
    for one, other in zip(a.axes[:-2], b.axes[:-2], strict=True):
        call.units.couple(one, other)
    _consume(call.units, b, -2)
    _consume(call.units, a, -1)
    _count_macs(call.units, b, float(len(a.axes[-2])))
    _count_macs(call.units, a, float(len(b.axes[-1])))
    return Flow([*a.axes[:-1], b.axes[-1]], producers=_names(b))


def _names(weight: Flow) -> frozenset[str]:
    return frozenset() if weight.source is None else frozenset({weight.source[0]})


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "batch_norm",
    "cudnn_batch_norm",
)
def _batch_norm(call: Call) -> list[Flow]:
    axes = call.axes(0)
    for position in range(1, 5):
        if isinstance(call.args[position], torch.Tensor):
            call.units.couple(axes[1], call.flow(position).axes[0])
    call.units.normalized |= call.flow(0).producers
    return [Flow(axes)]


@rule("native_layer_norm")
def _layer_norm(call: Call) -> list[Flow]:
    """Mean and variance are over these units: without some, they would be others."""
    axes = call.axes(0)
    call.units.freeze(*axes[len(axes) - len(call.args[1]) :])
    for position in (2, 3):
        if isinstance(call.args[position], torch.Tensor):
            call.units.freeze(*call.flow(position).axes)
    return [Flow(axes)]


@rule("native_group_norm")
def _group_norm(call: Call) -> list[Flow]:
    """Channels that are normalised together go together."""
    axes = call.axes(0)
    for position in (1, 2):
        if isinstance(call.args[position], torch.Tensor):
            call.units.couple(axes[1], call.flow(position).axes[0])
    together = axes[1].reshape(call.args[6], -1)
    for column in together.T[1:]:
        call.units.couple(together[:, 0], column)
    call.units.freeze(*axes[2:])
    call.units.normalized |= call.flow(0).producers
    return [Flow(axes)]


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention",
)
def _attention(call: Call) -> list[Flow]:
    query, key, value = call.axes(0), call.axes(1), call.axes(2)
    for one, other in ((query, key), (key, value)):
        call.units.couple(one[0], other[0])
        call.units.couple(one[1], other[1])
    call.units.couple(query[-1], key[-1])
    return [Flow([*query[:-1], value[-1]])]


@rule(
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "max_pool2d",
    "max_pool1d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
)
def _pool(call: Call) -> list[Flow]:
    axes = call.axes(0)
    call.units.freeze(*axes[2:])
    out = call.out[0] if isinstance(call.out, (tuple, list)) else call.out
    return [Flow([*axes[:2], *(fixed(n) for n in out.shape[2:])])]


@rule("embedding")
def _embedding(call: Call) -> Flow:
    weight, index = call.flow(0), call.axes(1)
    call.units.freeze(weight.axes[0])
    return Flow([*index, weight.axes[1]])
