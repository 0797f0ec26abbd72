"""A small model without ever allocating the dense one."""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .plan import Plan
from .shrink import shrink


def build_dense(model_fn: Callable[[], nn.Module]) -> nn.Module:
    """Build a dense model on ``meta``, where tensors have no memory.

    A model whose constructor cannot run there, or that keeps tensors outside its
    ``state_dict``, is built for real.

    Parameters
    ----------
    model_fn : callable
        Gives the dense model. It is called every time: what it gives may depend on what
        has changed since.

    Returns
    -------
    nn.Module
        For :func:`.shrink.shrink`.
    """
    try:
        with torch.device("meta"):
            model = model_fn()
    except (RuntimeError, NotImplementedError):  # it reads values while it is made
        return model_fn()
    return model_fn() if any(map(_keeps_more, model.modules())) else model


def build_small(model_fn: Callable[[], nn.Module], plan: Plan) -> nn.Module:
    """Build a plan's model on the CPU; its values are whatever memory held.

    Parameters
    ----------
    model_fn : callable
        Gives the dense model, which gets no memory if :func:`build_dense` can help it.
    plan : Plan

    Returns
    -------
    nn.Module
        To be loaded with :func:`.shrink.load_arrays_inplace`.
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
