"""A small model without ever allocating the dense one."""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .plan import Plan
from .shrink import shrink


def build_small(model_fn: Callable[[], nn.Module], plan: Plan) -> nn.Module:
    """Build a plan's model on the CPU; its values are whatever memory held.

    The dense model is made on ``meta``, where tensors have no memory, and only the
    small one gets any. A model whose constructor cannot run there, or that keeps
    tensors outside its ``state_dict``, is built for real and then cut.

    Parameters
    ----------
    model_fn : callable
        Gives the dense model.
    plan : Plan

    Returns
    -------
    nn.Module
        To be loaded with :func:`.shrink.load_arrays_inplace`.
    """
    skeleton = _skeleton(model_fn)
    if skeleton is None:
        return shrink(model_fn(), plan)
    return shrink(skeleton, plan).to_empty(device="cpu")


def _skeleton(model_fn: Callable[[], nn.Module]) -> nn.Module | None:
    try:
        with torch.device("meta"):
            model = model_fn()
    except (RuntimeError, NotImplementedError):  # it reads values while it is made
        return None
    return None if any(_keeps_more(module) for module in model.modules()) else model


def _keeps_more(module: nn.Module) -> bool:
    """Tell whether a module holds values that its ``state_dict`` does not bring."""
    own = {"_parameters", "_buffers", "_modules"}
    loose = [value for name, value in vars(module).items() if name not in own]
    known = {id(tensor) for tensor in module.parameters(recurse=False)}
    return bool(module._non_persistent_buffers_set) or any(
        isinstance(leaf, torch.Tensor) and id(leaf) not in known
        for leaf in tree_leaves(loose)
    )
