"""What models cost: parameters, multiply-accumulates, bytes, memory for training.

MACs are counted on the model that is really built, by :mod:`.macs`, on the ``meta``
device (no memory, no arithmetic) or, where ``forward`` needs values, on the CPU; FLOPs
= 2 MACs, as in Eq. 12 of arXiv:2405.10271v3.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any, TypeVar

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from ..errors import AutoFlipError, AutoFlipWarning, WireError
from ..graph.batch import Arguments, arguments, batch_size, map_tensors
from ..graph.budget import Resource
from ..graph.plan import Plan
from ..graph.shrink import shrink
from .macs import MacCounter

T = TypeVar("T")
Measure = Callable[[nn.Module, Any, int], T]

MEMORY_BATCH = 32
"""Examples of the batch for which training memory is counted."""


@dataclass(frozen=True)
class Cost:
    """What a model that was really built costs.

    Parameters
    ----------
    parameters : int
        Trainable values, zeros among them: they take memory and time like any other.
    macs : int or None
        Forward multiply-accumulates an example; None if they cannot be counted, and
        ``uncounted`` says why.
    bytes : int
        Memory of the ``state_dict``.
    """

    parameters: int
    macs: int | None
    bytes: int
    uncounted: str = ""


def measure_cost(model: nn.Module, example_input: Any, axis: int = 0) -> Cost:
    """Measure a model; see :class:`Cost` and :func:`count_macs`."""
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    try:
        macs = count_macs(model, example_input, axis)
    except AutoFlipError as error:
        return Cost(count_parameters(model), None, size, str(error))
    return Cost(count_parameters(model), macs, size)


def count_parameters(model: nn.Module) -> int:
    """Count trainable values of a model."""
    return sum(p.numel() for p in model.parameters())


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
    macs = _without_values(_count_macs, model, example_input, "MACs")
    return macs // _examples(example_input, axis)


def count_training_memory(model: nn.Module, example_input: Any, axis: int = 0) -> int:
    """Count the bytes of training with momentum on :data:`MEMORY_BATCH` examples.

    Weights, gradients, one momentum a weight, buffers, and whatever autograd saves of
    a forward pass for the backward one; as in evaluation, so dropout's masks are left
    out. A process peaks above that: kernels take workspace of their own. Takes and
    raises what :func:`count_macs` does; what is saved grows with an example's length.
    """
    saved = _without_values(_count_saved, model, example_input, "memory")
    fixed = sum(tensor.nbytes for tensor in model.state_dict().values())
    fixed += 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return int(fixed + MEMORY_BATCH * saved // _examples(example_input, axis))


def _without_values(
    count: Callable[[nn.Module, Arguments], T],
    model: nn.Module,
    example_input: Any,
    what: str,
) -> T:
    """Count on a copy of a model on ``meta``; where that fails, on the CPU."""
    faults = []
    for name in ("meta", "cpu"):
        try:
            here = copy.deepcopy(model).to(name).eval()
            given = map_tensors(methodcaller("to", name), arguments(example_input))
            with torch.device(name):  # also for what forward itself makes
                return count(here, given)
        except Exception as error:
            faults.append(f"{type(error).__name__} on {name}: {error}")
    raise AutoFlipError(
        f"{what} of {type(model).__name__} cannot be counted: {'; '.join(faults)}"
    )


def _examples(example_input: Any, axis: int) -> int:
    """Count the examples of a batch; one that does not tell is one example."""
    return batch_size(*arguments(example_input), axis) or 1


def _count_macs(model: nn.Module, given: Arguments) -> int:
    args, kwargs = given
    with torch.no_grad(), MacCounter() as counter:
        model(*args, **kwargs)
    if counter.fault:
        raise AutoFlipError(counter.fault)
    return int(counter.macs + counter.eval_macs)


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
        model(*args, **kwargs)
    sizes = {key: saved[key].untyped_storage().nbytes() for key in saved.keys() - own}
    return sum(sizes.values())


def _storage(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


# --- Plans' models ---


@dataclass
class CostOf:
    """Costs of the dense model and of plans' models; each is measured once.

    Single zeros in a plan's model count, since they are computed.

    Parameters
    ----------
    model : nn.Module
    example_input : Tensor, tuple or mapping of str to object
    axis : int (default: 0)
        Along which examples lie in the first tensor.
    answer : tuple of str (default: none)
        Groups whose removed units answer even so in a masked model; see
        :func:`flwr_autoflip.graph.tracing.verify.answering_groups`.
    """

    model: nn.Module
    example_input: Any
    axis: int = 0
    answer: tuple[str, ...] = ()
    _warned: bool = False
    _known: dict[tuple[Callable[..., Any], tuple[int, ...]], Any] = field(
        default_factory=dict
    )

    def dense(self) -> Cost:
        """Cost of the whole model; warns once if its MACs cannot be counted."""
        cost = self._once(measure_cost, None)
        if cost.macs is None and not self._warned:
            self._warned = True
            text = f"{cost.uncounted} Ratios of MACs are unknown; the run goes on."
            warnings.warn(text, AutoFlipWarning, stacklevel=2)
        return cost

    def plan(self, plan: Plan) -> Cost:
        """Cost of a plan's model."""
        return self._once(measure_cost, plan)

    def ratio(self, plan: Plan, resource: Resource) -> float:
        """Give a plan's model's cost over the dense one's, in (0, 1].

        Raises
        ------
        AutoFlipError
            If the resource cannot be counted.
        """
        if resource == "memory":
            measure = count_training_memory
            return self._once(measure, plan) / self._once(measure, None)
        small, dense = self.plan(plan), self.dense()
        if resource == "parameters":
            return small.parameters / dense.parameters
        if small.macs is None or dense.macs is None:
            raise AutoFlipError(
                f"{small.uncounted or dense.uncounted} Use 'parameters' instead of "
                "'macs'."
            )
        return small.macs / dense.macs

    def _once(
        self, measure: Callable[[nn.Module, Any, int], T], plan: Plan | None
    ) -> T:
        """Measure a plan's model, or the dense one, if that was not done yet.

        A model's cost depends on how many units are kept, not on which.
        """
        if plan is not None and plan.alive.all():
            plan = None  # its model is the dense one
        key = measure, () if plan is None else tuple(map(len, plan.keep.values()))
        if key not in self._known:
            model = self.model
            if plan is not None:
                model = shrink(model, plan.without_mask())
            self._known[key] = measure(model, self.example_input, self.axis)
        found: T = self._known[key]
        return found

    def answering(self, plan: Plan) -> list[str]:
        """Name groups with removed units that answer even so, in a masked model."""
        sizes = {group.name: group.size for group in plan.layout.groups}
        return [name for name in self.answer if len(plan.keep[name]) < sizes[name]]

    def shape(self, plan: Plan) -> dict[str, Any]:
        """Describe a plan's model, and the dense one, for the ledger."""
        cost = self.plan(plan)
        return {
            "parameters": plan.num_parameters,
            "zeros": cost.parameters - plan.num_parameters,
            "bytes": cost.bytes,
            "dense_parameters": plan.layout.num_parameters,
            "macs": cost.macs,
            "dense_macs": self.dense().macs,
            "units": {name: len(kept) for name, kept in plan.keep.items()},
        }

    def check(self, plan: Plan, parameters: int) -> None:
        """Raise ``WireError`` unless a node built the plan's model or the dense one."""
        small, dense = self.plan(plan).parameters, self.dense().parameters
        if parameters not in (small, dense):
            raise WireError(
                f"the node trained a model of {parameters} parameters; its plan's has "
                f"{small}, the dense one {dense}."
            )
