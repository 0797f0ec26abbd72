"""A small model without ever allocating the dense one."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .plan import Plan
from .shrink import shrink


def build_small(model_fn: Callable[[], nn.Module], plan: Plan) -> nn.Module:
    """Build a plan's model on the CPU; its values are whatever memory held.

    The dense model is made on ``meta``, where tensors have no memory, and only the
    small one gets any. A model whose constructor cannot run there, or that keeps
    tensors outside its ``state_dict``, is built for real and then cut. What was cut on
    ``meta`` is kept, and copied when the same plan is built again.

    Parameters
    ----------
    model_fn : callable
        Gives the dense model, the same at every call.
    plan : Plan

    Returns
    -------
    nn.Module
        To be loaded with :func:`.shrink.load_arrays_inplace`.
    """
    skeleton = _small_skeleton(model_fn, plan)
    if skeleton is None:
        return shrink(model_fn(), plan)
    return _copy(skeleton).to_empty(device="cpu")


def _copy(model: nn.Module) -> nn.Module:
    """Copy a model; most of what it holds are empty dictionaries, which are remade."""
    empty = (
        value
        for module in model.modules()
        for value in vars(module).values()
        if type(value) in (dict, OrderedDict) and not value
    )
    return copy.deepcopy(model, {id(value): type(value)() for value in empty})


@lru_cache(maxsize=8)
def _small_skeleton(model_fn: Callable[[], nn.Module], plan: Plan) -> nn.Module | None:
    try:
        with torch.device("meta"):
            model = model_fn()
    except (RuntimeError, NotImplementedError):  # it reads values while it is made
        return None
    if any(_keeps_more(module) for module in model.modules()):
        return None
    return shrink(model, plan)


def _keeps_more(module: nn.Module) -> bool:
    """Tell whether a module holds values that its ``state_dict`` does not bring."""
    own = {"_parameters", "_buffers", "_modules"}
    loose = [value for name, value in vars(module).items() if name not in own]
    known = {id(tensor) for tensor in module.parameters(recurse=False)}
    return bool(module._non_persistent_buffers_set) or any(
        isinstance(leaf, torch.Tensor) and id(leaf) not in known
        for leaf in tree_leaves(loose)
    )
