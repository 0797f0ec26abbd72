"""Plans made from what the first rounds did to the dense network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from flwr_autoflip.methods.policy import Renewal, unit_plan
from numpy.typing import NDArray
from torch import nn

from flwr_autoflip.graph.layout import Arrays, Layout
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.shrink import load_arrays_inplace
from flwr_autoflip.methods import Policy, Previous, RandomUnits
from flwr_autoflip.methods.guidance import Report, split_by_group, unit_scores
from flwr_autoflip.methods.threshold import MacShare

from .scores import SCORES, UnitScores, score_units

LATER = {
    **{name: SCORES[name] for name in ("chance", "weights", "movement", "product")},
    "relative": SCORES["relative"],
    "gradients": "squared gradients",
    "activations": "activations",
}


@dataclass(frozen=True, eq=False)
class Later(Policy):
    """Train the dense network for some rounds, then keep units by one of many scores.

    Parameters
    ----------
    score : str
        One of :data:`LATER`.
    dense_rounds : int
        How many rounds the dense network is trained for.
    macs : MacShare
        How much stays after them.
    initial : mapping of str to ndarray
        Dense weights before round 1.
    seed : int
        For ``"chance"``.
    activations : callable
        Dense weights to units' activations.
    """

    score: str
    dense_rounds: int
    macs: MacShare
    initial: Arrays
    seed: int
    activations: Callable[[Layout, Arrays], UnitScores]

    renewed: ClassVar[Renewal] = "round"

    def probes(self, server_round: int) -> bool:
        """Ask for gradients in the last dense round, where they are the score."""
        return self.score == "gradients" and server_round == self.dense_rounds

    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
        previous: Previous | None = None,
    ) -> Plan:
        """Make the plan; see :class:`flwr_autoflip.methods.Policy`."""
        if previous is None or server_round <= self.dense_rounds:
            return dense_plan(layout)
        if server_round > self.dense_rounds + 1:
            return previous.plan
        match self.score:
            case "chance":
                return RandomUnits(self.macs, self.seed)(0, layout, weights, [])
            case "gradients":
                scores = unit_scores(layout, reports[0])
            case "activations":
                scores = self.activations(layout, weights)
            case _:
                scores = score_units(self.score, layout, self.initial, weights, [])
        return unit_plan(layout, scores, self.macs)


def activation_scores(
    model: nn.Module, layout: Layout, weights: Arrays, inputs: torch.Tensor
) -> UnitScores:
    """Score units by the mean absolute output of their linear or convolution layers.

    Parameters
    ----------
    model : Module
        Gets the weights.
    layout : Layout
        Of the model.
    weights : mapping of str to ndarray
        Dense.
    inputs : Tensor
        A batch.

    Returns
    -------
    dict of str to ndarray
        Group name to ``(group.size,)``.

    Raises
    ------
    ValueError
        If a unit is in no such layer, as those of an LSTM are.
    """
    load_arrays_inplace(model, weights)
    outputs: NDArray[np.float64] = np.zeros(layout.num_units)
    layers = np.zeros(layout.num_units)

    def watch(owner: NDArray[np.int64], axis: int) -> Callable[..., None]:
        def hook(module: nn.Module, given: object, output: torch.Tensor) -> None:
            others = [a for a in range(output.dim()) if a != axis % output.dim()]
            owned = owner >= 0
            outputs[owner[owned]] += output.abs().double().mean(others).numpy()[owned]
            layers[owner[owned]] += 1

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            owner = layout.by_name[f"{name}.weight"].owners[0]
            if owner is not None:
                axis = 1 if isinstance(module, nn.Conv2d) else -1
                handles.append(module.register_forward_hook(watch(owner, axis)))
    with torch.no_grad():
        model.eval()(inputs)
    for handle in handles:
        handle.remove()
    if not layers.all():
        raise ValueError("activations: some units are in no linear or 2D convolution.")
    return split_by_group(layout, outputs / layers)
