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
from typing import Any

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
        An adjustment that changes the density by at most this ratio is stable.
    patience : int (default: 5)
        Stable adjustments in a row after which pruning ends.
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
    times = time.of_weights(trace(model, batches[0][0][:1]))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    squares = {n: torch.zeros_like(p.detach()) for n, p in trained.items()}
    mask = _HeldMask({name: trained[name] for name in times})

    def step(inputs: Tensor, targets: Tensor) -> int:
        """Train on a batch, add up squared gradients, and count what was right."""
        optimizer.zero_grad()
        outputs = model(inputs)
        loss_fn(outputs, targets).backward()  # type: ignore[no-untyped-call]
        for name, parameter in trained.items():
            if parameter.grad is not None:
                squares[name] += parameter.grad.detach() ** 2
        optimizer.step()
        mask.hold()  # momentum or a stray gradient may have moved pruned weights
        return int((outputs.argmax(1) == targets).sum())

    stable = first = 0
    num_examples = sum(targets.numel() for _, targets in batches)
    for number in range(1, schedule.max_passes + 1):
        accuracy = sum(step(*batch) for batch in batches) / num_examples
        if not first and accuracy >= schedule.min_accuracy:
            first = number
        if not first or (number - first) % schedule.interval:
            continue
        before = mask.density
        chosen = adjust(
            _to_numpy(mask.weights),
            _to_numpy(squares),
            _to_numpy(mask.used),
            times,
            time.fixed,
            schedule.fraction,
            kept,
        )
        mask.change(chosen)
        for total in squares.values():
            total.zero_()
        change = abs(mask.density / before - 1)
        steady = number > first and change <= schedule.tolerance
        stable = stable + 1 if steady else 0
        if stable >= schedule.patience:
            break
    mask.restore()
    return mask.density


def _to_numpy(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


class _HeldMask:
    """Weights of which some are 0 for now."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights
        self.initial = {n: p.detach().clone() for n, p in weights.items()}
        # What a pruned weight was then; it starts from there if it comes back.
        self.latent = dict(self.initial)
        self.used = {
            n: torch.ones_like(p, dtype=torch.bool) for n, p in weights.items()
        }

    @property
    def density(self) -> float:
        used = sum(int(used.sum()) for used in self.used.values())
        return used / sum(used.numel() for used in self.used.values())

    @torch.no_grad()
    def hold(self) -> None:
        """Set pruned weights to 0."""
        for name, weight in self.weights.items():
            weight.masked_fill_(~self.used[name], 0)

    @torch.no_grad()
    def change(self, chosen: Mask) -> None:
        """Prune weights, and let others come back."""
        for name, weight in self.weights.items():
            self.latent[name] = weight.where(self.used[name], self.latent[name])
            weight.copy_(self.latent[name])
            self.used[name] = torch.as_tensor(chosen[name], device=weight.device)
        self.hold()

    @torch.no_grad()
    def restore(self) -> None:
        """Give pruned weights their first values."""
        for name, weight in self.weights.items():
            weight.copy_(weight.where(self.used[name], self.initial[name]))
