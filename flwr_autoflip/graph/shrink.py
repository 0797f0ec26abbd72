"""``nn.Module`` + plan -> a physically smaller ``nn.Module``."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._pytree import tree_leaves

from ..errors import AutoFlipError
from .attention import HeadPrunedAttention
from .layout import Arrays, Described, difference
from .plan import Plan

Resize = Callable[[Any], None]
_RESIZERS: dict[type[nn.Module], Resize] = {}


def register_resize(*kinds: type[nn.Module]) -> Callable[[Resize], Resize]:
    """Register how a layer type mends its size attributes after its tensors shrank.

    Decorates a ``function(layer) -> None``.

    Parameters
    ----------
    *kinds : type
        Layer classes; subclasses are served too.
    """

    def register(function: Resize) -> Resize:
        for kind in kinds:
            _RESIZERS[kind] = function
        return function

    return register


@register_resize(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _resize_conv(layer: Any) -> None:
    if layer.groups > 1 and layer.groups == layer.in_channels:  # depthwise
        layer.groups = layer.weight.shape[0] // (layer.out_channels // layer.groups)
    layer.out_channels = layer.weight.shape[0]
    layer.in_channels = layer.weight.shape[1] * layer.groups


@register_resize(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _resize_conv_transpose(layer: Any) -> None:
    layer.in_channels = layer.weight.shape[0]
    layer.out_channels = layer.weight.shape[1] * layer.groups


@register_resize(nn.Linear)
def _resize_linear(layer: Any) -> None:
    layer.out_features, layer.in_features = layer.weight.shape


@register_resize(nn.PReLU)
def _resize_prelu(layer: Any) -> None:
    layer.num_parameters = len(layer.weight)


@register_resize(nn.Embedding)
def _resize_embedding(layer: Any) -> None:
    layer.num_embeddings, layer.embedding_dim = layer.weight.shape


@register_resize(nn.GroupNorm)
def _resize_group_norm(layer: Any) -> None:
    if layer.affine:
        together = layer.num_channels // layer.num_groups
        layer.num_channels = len(layer.weight)
        layer.num_groups = layer.num_channels // together


@register_resize(nn.RNNBase)
def _resize_recurrent(layer: Any) -> None:
    if not layer.proj_size:  # else the recurrent columns are projections
        layer.hidden_size = layer.weight_hh_l0.shape[1]
    layer.input_size = layer.weight_ih_l0.shape[1]
    layer._init_flat_weights()


@register_resize(nn.MultiheadAttention)
def _resize_attention(layer: Any) -> None:
    if layer.in_proj_weight is None:  # query, key and value of different widths
        return
    outer, inner = layer.out_proj.weight.shape
    if {outer, inner, layer.in_proj_weight.shape[1]} != {layer.embed_dim}:
        layer.num_heads = inner // layer.head_dim
        layer.__class__ = HeadPrunedAttention
        layer._qkv_same_embed_dim = False  # keeps torch's fused fast path away


@register_resize(nn.TransformerEncoder)
def _resize_encoder(layer: Any) -> None:
    layer.use_nested_tensor = False  # only torch's fused layers understand those


@register_resize(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _resize_batch_norm(layer: Any) -> None:
    sized = layer.weight if layer.affine else layer.running_mean
    layer.num_features = layer.num_features if sized is None else len(sized)


def arrays_of(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Copy the ``state_dict`` of a model, on any device, into NumPy arrays."""
    return {
        name: np.array(tensor.detach().cpu().numpy())
        for name, tensor in model.state_dict().items()
    }


def load_arrays_inplace(model: nn.Module, arrays: Arrays) -> None:
    """Copy NumPy arrays into a model of the same shapes."""
    state = {name: torch.tensor(array) for name, array in arrays.items()}
    model.load_state_dict(state, strict=True)


def describe(model: nn.Module) -> tuple[Described, ...]:
    """Say what a model's ``state_dict`` holds, and which names are of one tensor."""
    firsts: dict[int, str] = {}
    described = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = firsts.setdefault(id(tensor), name)
        dtype = str(tensor.dtype).removeprefix("torch.")
        same_as = "" if first == name else first
        described.append((name, tuple(tensor.shape), dtype, same_as))
    return tuple(described)


def shrink(model: nn.Module, plan: Plan) -> nn.Module:
    """Build the model that holds only a plan's units.

    Parameters
    ----------
    model : nn.Module
        Dense; left untouched. Of one on ``meta`` comes a small one on the CPU, whose
        values are whatever memory held.
    plan : Plan
        Its single-weight mask zeroes weights of the result; see :func:`hold_mask`.

    Returns
    -------
    nn.Module
        Same class, smaller layers, the dense model's kept values. Which coordinate
        came from where is ``plan.index``.

    Raises
    ------
    AutoFlipError
        If the model is not the plan's.
    """
    have = {name: f"{shape}" for name, shape, *_ in describe(model)}
    want = {spec.name: f"{spec.shape}" for spec in plan.layout.tensors}
    if fault := difference(have, want):
        raise AutoFlipError(fault)
    memo: dict[int, Any] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in memo:  # its first name may have a mask
            memo[id(tensor)] = _cut(tensor, plan, name)
    small = copy.deepcopy(model, memo)  # meets the cut tensors instead of dense ones
    for module in small.modules():
        for kind in type(module).__mro__:
            if kind in _RESIZERS:
                _RESIZERS[kind](module)
                break
    return small


def shrink_with(model: nn.Module, plan: Plan, arrays: Arrays) -> nn.Module:
    """Build a plan's model with these dense arrays' values instead of the model's."""
    small, values = shrink(model, plan), plan.apply(arrays)
    load_arrays_inplace(small, {n: plan.take(n, a) for n, a in values.items()})
    return small


def _cut(tensor: torch.Tensor, plan: Plan, name: str) -> torch.Tensor:
    cut = tensor.detach()
    for axis, kept in enumerate(plan.index[name]):
        if kept is not None:
            cut = cut.index_select(axis, torch.as_tensor(kept, device=cut.device))
    if cut.is_meta:
        cut = torch.empty_like(cut, device="cpu")
    elif cut.data_ptr() == tensor.data_ptr():
        cut = cut.clone()
    if name in plan.small_mask:
        cut *= torch.as_tensor(plan.small_mask[name], device=cut.device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(cut, requires_grad=tensor.requires_grad)
    return cut


def hold_mask(small: nn.Module, plan: Plan) -> AbstractContextManager[Any]:
    """Keep pruned single weights at 0 while any optimizer trains the model.

    Their gradients are zeroed as they are computed; from 0 with gradient 0 neither
    momentum nor weight decay moves them.

    Parameters
    ----------
    small : nn.Module
        From :func:`shrink`, its masked weights 0.
    plan : Plan

    Returns
    -------
    context manager
        The hooks leave with it.
    """
    stack = ExitStack()
    parameters = dict(small.named_parameters())
    for name, mask in plan.small_mask.items():
        hook = _GradientMask(torch.as_tensor(mask))
        parameter: Any = parameters[name]  # torch leaves its hooks untyped
        stack.callback(parameter.register_post_accumulate_grad_hook(hook).remove)
    return stack


class _GradientMask:
    """Multiply a parameter's gradient by a mask, on whatever device it turns up."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask

    def __call__(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self.mask = self.mask.to(parameter.grad)  # once
            parameter.grad.mul_(self.mask)  # in place: no second buffer


# --- Without ever allocating the dense model ---


def build_dense(model_fn: Callable[[], nn.Module]) -> nn.Module:
    """Call ``model_fn`` on ``meta``, where tensors have no memory; for :func:`shrink`.

    A model whose constructor cannot run there, or that keeps tensors outside its
    ``state_dict``, is built for real.
    """
    try:
        with torch.device("meta"):
            model = model_fn()
    except (RuntimeError, NotImplementedError):  # it reads values while it is made
        return model_fn()
    return model_fn() if any(map(_keeps_more, model.modules())) else model


def build_small(model_fn: Callable[[], nn.Module], plan: Plan) -> nn.Module:
    """Build a plan's model on the CPU; its values are whatever memory held.

    ``model_fn`` gives the dense model, which :func:`build_dense` keeps out of memory.
    """
    return shrink(build_dense(model_fn), plan)


def _keeps_more(module: nn.Module) -> bool:
    """Tell whether a module holds values that its ``state_dict`` does not bring."""
    own = {"_parameters", "_buffers", "_modules"}
    loose = [value for name, value in vars(module).items() if name not in own]
    known = {id(tensor) for tensor in module.parameters(recurse=False)}
    return bool(module._non_persistent_buffers_set) or any(
        isinstance(leaf, torch.Tensor) and id(leaf) not in known
        for leaf in tree_leaves(loose)
    )
