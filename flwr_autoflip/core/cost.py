"""What a model costs: parameters, zeros among them, multiply-accumulates, bytes.

MACs are counted on the model that is really built, by torch's ``FlopCounterMode`` on
the ``meta`` device (no memory, no arithmetic); FLOPs = 2 MACs, as in Eq. 12 of
arXiv:2405.10271v3. What a training step costs is :mod:`.work`'s.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

MEMORY_BATCH = 32
"""Examples of the batch for which training memory is counted."""


@dataclass(frozen=True)
class Cost:
    """What a model that was really built costs.

    Parameters
    ----------
    parameters : int
        Trainable values, zeros among them: they take memory and time like any other.
    zeros : int
        How many of them are exactly 0. Bytes on the wire fall with these, no more.
    macs : int
        Forward multiply-accumulates an example.
    bytes : int
        Memory of the ``state_dict``.
    """

    parameters: int
    zeros: int
    macs: int
    bytes: int


def measure_cost(model: nn.Module, example_input: Any) -> Cost:
    """Measure a model; see :class:`Cost` and :func:`count_macs`."""
    return Cost(
        count_parameters(model),
        sum(int((p == 0).sum()) for p in model.parameters()),
        count_macs(model, example_input),
        sum(tensor.nbytes for tensor in model.state_dict().values()),
    )


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
    meta, tensors, batch = _on_meta(model, example_input)
    here = torch.device("meta")  # also for what forward itself makes
    with here, torch.no_grad(), FlopCounterMode(display=False) as counter:
        meta(*tensors)
    return int(counter.get_total_flops()) // (2 * batch)


def _on_meta(model: nn.Module, example_input: Any) -> tuple[nn.Module, list[Any], int]:
    """Copy a model and its inputs to where there is no arithmetic; give the batch."""
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    meta = copy.deepcopy(model).to("meta").eval()
    tensors = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in inputs]
    return meta, tensors, next(len(x) for x in inputs if isinstance(x, torch.Tensor))


def count_training_memory(model: nn.Module, example_input: Any) -> int:
    """Count what training with momentum on batches of :data:`MEMORY_BATCH` holds.

    Weights, gradients, one momentum a weight, buffers, and whatever autograd saves of
    a forward pass for the backward one. A process peaks above that: kernels take
    workspace of their own.

    Parameters
    ----------
    model : nn.Module
        Left untouched; counted as in evaluation, so dropout's masks are left out.
    example_input : Tensor or tuple of Tensor
        A batch; what is saved grows with its length.

    Returns
    -------
    int
        Bytes.
    """
    meta, tensors, batch = _on_meta(model, example_input)
    own = {_storage(tensor) for tensor in meta.state_dict().values()}
    saved: dict[StorageWeakRef, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[_storage(tensor)] = tensor  # views count once
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with torch.device("meta"), torch.enable_grad(), hooks:
        outputs = meta(*tensors)
    del outputs
    activations = sum(
        tensor.untyped_storage().nbytes()
        for storage, tensor in saved.items()
        if storage not in own
    )
    fixed = sum(tensor.nbytes for tensor in meta.state_dict().values())
    fixed += 2 * sum(p.nbytes for p in meta.parameters() if p.requires_grad)
    return int(fixed + MEMORY_BATCH * activations // batch)


def _storage(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


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
