"""PruneFL's initial pruning at one client (arXiv:1909.12326): the node's half.

A node's app calls it in round 1::

    class Client(AutoFlipClient):
        def train(self, model, config):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            if config["server-round"] == 1:
                prune_initially_inplace(model, optimizer, F.cross_entropy, ten_batches)
            ...
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...graph.plan import Mask
from ...graph.tracing.trace import trace
from .prunefl import RoundTime, adjust

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long initial pruning goes on; the defaults are the authors' code.

    Parameters
    ----------
    max_passes : int (default: 1000)
        Passes over the batches at most.
    interval : int (default: 50)
        Adjust after every so many passes.
    min_accuracy : float (default: 0.0)
        First adjustment as soon as a pass reaches this training top-1. The authors
        take 1.5 over the number of classes.
    fraction : float (default: 0.3)
        See :func:`.prunefl.adjust`.
    tolerance : float (default: 0.1)
        Density is stable if an adjustment changes it by at most this ratio,
    patience : int (default: 5)
        and pruning ends after so many stable adjustments in a row.
    """

    max_passes: int = 1000
    interval: int = 50
    min_accuracy: float = 0.0
    fraction: float = 0.3
    tolerance: float = 0.1
    patience: int = 5


def prune_initially_inplace(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    batches: Sequence[Batch],
    schedule: Schedule | None = None,
    time: RoundTime | None = None,
    kept: int | None = None,
) -> float:
    """Train on a few batches again and again, and adjust the mask now and then.

    Parameters
    ----------
    model : nn.Module
        Dense, in training mode. At the end pruned weights hold exactly the values that
        they had at the start: that tells the server which they are.
    optimizer : Optimizer
        Of the model's parameters.
    loss_fn : callable
        ``(model(inputs), targets) -> loss``.
    batches : sequence of (Tensor, Tensor)
        On the model's device. The authors take ten of 20 examples.
    schedule : Schedule, optional
    time : RoundTime, optional
        The method's.
    kept : int, optional
        See :func:`.prunefl.adjust`.

    Returns
    -------
    float
        Density: ratio of the prunable weights that is kept.

    Notes
    -----
    Where we differ: pruned weights may come back here as they may later (in the
    authors' simulation their gradient is masked away, so that they cannot), and top-1
    is that of the pass itself, not of an evaluation every ten passes.
    """
    schedule, time = schedule or Schedule(), time or RoundTime()
    layout = trace(model, batches[0][0][:1])
    mask = _HeldMask(model, list(time.of_weights(layout)))
    density, stable, first = 1.0, 0, 0
    for number in range(1, schedule.max_passes + 1):
        accuracy = _one_pass(model, optimizer, loss_fn, batches, mask)
        if not first and accuracy >= schedule.min_accuracy:
            first = number
        if not first or (number - first) % schedule.interval:
            continue
        chosen = adjust(
            {name: p.detach().cpu().numpy() for name, p in mask.weights.items()},
            mask.take_squares(),
            mask.used,
            time.of_weights(layout),
            time.fixed,
            schedule.fraction,
            kept,
        )
        mask.change(chosen)
        before, density = density, mask.density
        steady = number > first and abs(density / before - 1) <= schedule.tolerance
        stable = stable + 1 if steady else 0
        if stable >= schedule.patience:
            break
    mask.restore()
    return density


def _one_pass(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    batches: Sequence[Batch],
    mask: "_HeldMask",
) -> float:
    """Train one pass and give its top-1."""
    right = total = 0
    for inputs, targets in batches:
        optimizer.zero_grad()
        outputs = model(inputs)
        loss_fn(outputs, targets).backward()  # type: ignore[no-untyped-call]
        mask.add_squares()
        optimizer.step()
        mask.hold()
        right += int((outputs.argmax(1) == targets).sum())
        total += targets.numel()
    return right / total


class _HeldMask:
    """Weights of which some are 0 for now, and squares of gradients so far."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.weights = {name: self.named[name] for name in names}
        self.initial = {n: p.detach().clone() for n, p in self.weights.items()}
        # What a pruned weight was then; it starts from there if it comes back.
        self.latent = dict(self.initial)
        self.used = {n: np.ones(p.shape, np.bool_) for n, p in self.weights.items()}
        self.squares: dict[str, Tensor] = {}

    @property
    def density(self) -> float:
        used = sum(int(used.sum()) for used in self.used.values())
        return used / sum(used.size for used in self.used.values())

    def add_squares(self) -> None:
        for name, parameter in self.named.items():
            before = self.squares.get(name, torch.zeros_like(parameter.detach()))
            grad = parameter.grad
            self.squares[name] = before if grad is None else before + grad.detach() ** 2

    def take_squares(self) -> dict[str, NDArray[np.float32]]:
        taken, self.squares = self.squares, {}
        return {name: squares.cpu().numpy() for name, squares in taken.items()}

    @torch.no_grad()
    def hold(self) -> None:
        """Undo what momentum or a stray gradient did to pruned weights."""
        self._fill({name: torch.zeros_like(p) for name, p in self.weights.items()})

    @torch.no_grad()
    def change(self, chosen: Mask) -> None:
        """Prune weights, and let others come back."""
        for name, parameter in self.weights.items():
            self.latent[name] = torch.where(
                self._mask(name), parameter, self.latent[name]
            )
            parameter.copy_(self.latent[name])
        self.used = dict(chosen)
        self.hold()

    @torch.no_grad()
    def restore(self) -> None:
        """Give pruned weights their first values."""
        self._fill(self.initial)

    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.weights.items():
            parameter.copy_(torch.where(self._mask(name), parameter, values[name]))

    def _mask(self, name: str) -> Tensor:
        return torch.as_tensor(self.used[name], device=self.weights[name].device)
