"""How unit labels pass the operators that layers are made of."""

import math

import torch

from .propagate import Call, Flow, Labels, Units, fixed, rule


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
    elif not transposed:
        _couple_groups(units, inputs[1], produced, consumed, groups)
    call.couple(produced, 2)
    out = call.out.shape
    spatial = call.args[0].shape if transposed else out
    macs = float(out[0] * math.prod(spatial[2:]))
    units.consume(weight, 0 if transposed else 1, macs)
    produced = fixed(out[1]) if transposed and groups != 1 else produced
    axes = [inputs[0], produced, *(fixed(n) for n in out[2:])]
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
    call.units.consume(b, -2, float(len(a.axes[-2])))
    call.units.consume(a, -1, float(len(b.axes[-1])))
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
    call.couple(axes[1], 1, 2, 3, 4)
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
    call.couple(axes[1], 1, 2)
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
