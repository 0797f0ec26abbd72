"""What plans' models cost, measured on the models themselves."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import AutoFlipError, AutoFlipWarning, WireError
from ..graph.budget import Resource
from ..graph.codec import encode_plan, plan_digest
from ..graph.plan import Plan
from ..graph.shrink import shrink
from .cost import Cost, count_training_memory, measure_cost

Measure = Callable[[nn.Module, Any, int], Any]


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
        :func:`.core.verify.answering_groups`.
    """

    model: nn.Module
    example_input: Any
    axis: int = 0
    answer: tuple[str, ...] = ()
    _warned: bool = False
    _known: dict[tuple[Measure, bytes], Any] = field(default_factory=dict)

    def dense(self) -> Cost:
        """Cost of the whole model.

        Warns
        -----
        AutoFlipWarning
            Once, if its MACs cannot be counted.
        """
        cost: Cost = self._once(measure_cost, None)
        if cost.macs is None and not self._warned:
            self._warned = True
            text = f"{cost.uncounted} Shares of MACs are unknown; the run goes on."
            warnings.warn(text, AutoFlipWarning, stacklevel=2)
        return cost

    def plan(self, plan: Plan) -> Cost:
        """Cost of a plan's model."""
        cost: Cost = self._once(measure_cost, plan)
        return cost

    def share(self, plan: Plan, resource: Resource) -> float:
        """Give what a plan's model takes of a resource, as a share of the dense one's.

        Parameters
        ----------
        plan : Plan
        resource : {"macs", "parameters", "memory"}

        Returns
        -------
        float
            In (0, 1].

        Raises
        ------
        AutoFlipError
            If the resource cannot be counted.
        """
        if resource == "memory":
            small, dense = (self._once(count_training_memory, p) for p in (plan, None))
            return float(small / dense)
        small, dense = self.plan(plan), self.dense()
        if resource == "macs":
            return _known(small) / _known(dense)
        return small.parameters / dense.parameters

    def _once(self, measure: Measure, plan: Plan | None) -> Any:
        """Measure a plan's model, or the dense one, if that was not done yet."""
        if plan is not None and plan.alive.all():
            plan = None  # its model is the dense one
        key = measure, b"" if plan is None else _digest(plan)
        if key not in self._known:
            model = self.model
            if plan is not None:
                model = shrink(model, plan.without_mask())
            self._known[key] = measure(model, self.example_input, self.axis)
        return self._known[key]

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


def _known(cost: Cost) -> int:
    if cost.macs is None:
        raise AutoFlipError(
            f"{cost.uncounted} Use shares of 'parameters' instead of 'macs'."
        )
    return cost.macs


def _digest(plan: Plan) -> bytes:
    return plan_digest(encode_plan(plan.without_mask()), plan.layout)
