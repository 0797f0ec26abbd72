"""What a model costs: parameters, zeros among them, multiply-accumulates, bytes.

MACs are counted on the model that is really built, by :mod:`.macs`, on the ``meta``
device (no memory, no arithmetic) or, where ``forward`` needs values, on the CPU; FLOPs
= 2 MACs, as in Eq. 12 of arXiv:2405.10271v3. What a training step costs is
:mod:`.work`'s.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from ..errors import AutoFlipError
from ..graph.batch import Arguments, arguments, batch_size, map_tensors
from .macs import MacCounter

T = TypeVar("T")

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
    macs : int or None
        Forward multiply-accumulates an example; None if they cannot be counted.
    bytes : int
        Memory of the ``state_dict``.
    uncounted : str (default: "")
        Why MACs cannot be counted.
    """

    parameters: int
    zeros: int
    macs: int | None
    bytes: int
    uncounted: str = ""


def measure_cost(model: nn.Module, example_input: Any, axis: int = 0) -> Cost:
    """Measure a model; see :class:`Cost` and :func:`count_macs`."""
    macs, uncounted = None, ""
    try:
        macs = count_macs(model, example_input, axis)
    except AutoFlipError as error:
        uncounted = str(error)
    return Cost(
        count_parameters(model),
        sum(int((p == 0).sum()) for p in model.parameters()),
        macs,
        sum(tensor.nbytes for tensor in model.state_dict().values()),
        uncounted,
    )


def count_macs(model: nn.Module, example_input: Any, axis: int = 0) -> int:
    """Count forward multiply-accumulates of one example.

    Parameters
    ----------
    model : nn.Module
        Left untouched.
    example_input : Tensor, tuple or mapping of str to object
        A batch, as ``forward`` takes it; the count is divided by its length.
    axis : int (default: 0)
        Along which examples lie in the first tensor.

    Returns
    -------
    int
        MACs an example. Single zero weights are computed, so they count.

    Raises
    ------
    AutoFlipError
        If they cannot be counted.
    """

    def count(model: nn.Module, given: Arguments) -> int:
        args, kwargs = given
        with torch.no_grad(), MacCounter() as counter:
            model(*args, **kwargs)
        if counter.fault:
            raise AutoFlipError(counter.fault)
        return int(counter.macs + counter.eval_macs)

    given = arguments(example_input)
    return _without_values(count, model, given, "MACs") // _examples(given, axis)


def _without_values(
    count: Callable[[nn.Module, Arguments], T],
    model: nn.Module,
    given: Arguments,
    what: str,
) -> T:
    """Count on a copy of a model on ``meta``; where that fails, on the CPU.

    Raises
    ------
    AutoFlipError
        Where both fail.
    """
    faults = []
    for name in ("meta", "cpu"):
        try:
            here = copy.deepcopy(model).to(name).eval()
            moved = map_tensors(partial(_moved, name), given)
            with torch.device(name):  # also for what forward itself makes
                return count(here, moved)
        except Exception as error:
            faults.append(f"{type(error).__name__} on {name}: {error}")
    raise AutoFlipError(
        f"{what} of {type(model).__name__} cannot be counted: {'; '.join(faults)}"
    )


def _moved(device: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(device)


def _examples(given: Arguments, axis: int) -> int:
    """Count the examples of a batch; one that does not tell is one example."""
    return batch_size(*given, axis) or 1


def count_training_memory(model: nn.Module, example_input: Any, axis: int = 0) -> int:
    """Count what training with momentum on batches of :data:`MEMORY_BATCH` holds.

    Weights, gradients, one momentum a weight, buffers, and whatever autograd saves of
    a forward pass for the backward one. A process peaks above that: kernels take
    workspace of their own.

    Parameters
    ----------
    model : nn.Module
        Left untouched; counted as in evaluation, so dropout's masks are left out.
    example_input : Tensor, tuple or mapping of str to object
        A batch; what is saved grows with its length.
    axis : int (default: 0)
        Along which examples lie in the first tensor.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    AutoFlipError
        If it cannot be counted.
    """
    given = arguments(example_input)
    saved = _without_values(_count_saved, model, given, "memory")
    fixed = sum(tensor.nbytes for tensor in model.state_dict().values())
    fixed += 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return int(fixed + MEMORY_BATCH * saved // _examples(given, axis))


def _count_saved(model: nn.Module, given: Arguments) -> int:
    """Count the bytes that autograd saves of a forward pass, weights left out."""
    own = {_storage(tensor) for tensor in model.state_dict().values()}
    saved: dict[StorageWeakRef, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[_storage(tensor)] = tensor  # views count once
        return tensor

    args, kwargs = given
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with torch.enable_grad(), hooks:
        outputs = model(*args, **kwargs)
    del outputs
    return sum(
        tensor.untyped_storage().nbytes()
        for storage, tensor in saved.items()
        if storage not in own
    )


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

    class Call(nn.Module):
        """THOP has no arguments by keyword."""

        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(model)

        def forward(self) -> None:
            self.model(*args, **kwargs)

    args, kwargs = arguments(example_input)
    macs, _ = thop.profile(Call(), inputs=(), verbose=False)
    return int(macs) // _examples((args, kwargs), 0)
