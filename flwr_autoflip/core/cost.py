"""What a model costs: parameters and multiply-accumulates.

MACs are counted on the model that is really built, by torch's ``FlopCounterMode`` on
the ``meta`` device (no memory, no arithmetic); FLOPs = 2 MACs, as in Eq. 12 of
arXiv:2405.10271v4. A training step is taken as three forward passes.
"""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

STEP_PER_FORWARD = 3
"""MACs of a training step over those of its forward pass: one forward, two backward."""


def count_macs(model: nn.Module, example_input: Any) -> int:
    """Count forward multiply-accumulates of one example.

    Parameters
    ----------
    model : nn.Module
        Left untouched.
    example_input : Tensor or tuple of Tensor
        A batch; the count is divided by its length.

    Returns
    -------
    int
        MACs an example. Single zero weights are computed, so they count.
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    meta = copy.deepcopy(model).to("meta").eval()
    tensors = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in inputs]
    batch = next(len(x) for x in inputs if isinstance(x, torch.Tensor))
    here = torch.device("meta")  # also for what forward itself makes
    with here, torch.no_grad(), FlopCounterMode(display=False) as counter:
        meta(*tensors)
    return int(counter.get_total_flops()) // (2 * batch)


def count_parameters(model: nn.Module) -> int:
    """Count trainable values of a model."""
    return sum(p.numel() for p in model.parameters())


def count_macs_thop(model: nn.Module, example_input: Any) -> int:
    """Count forward MACs of one example with THOP, the paper's counter.

    THOP adds the cost of normalisation and pooling layers, and misses attention.

    Raises
    ------
    ImportError
        Without the extra ``flwr-autoflip[examples]``.
    """
    import thop

    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    batch = next(len(x) for x in inputs if isinstance(x, torch.Tensor))
    macs, _ = thop.profile(copy.deepcopy(model), inputs=inputs, verbose=False)
    return int(macs) // batch
