"""The loops: plain PyTorch, nothing here knows of pruning or of Flower."""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

EVALUATION_BATCH = 64  # what layers put out stays in the processor's cache
T = TypeVar("T", torch.Tensor, nn.Module)


def train(
    model: nn.Module,
    data: TensorDataset,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float = 0.0,
    seed: int = 0,
    device: str = "cpu",
) -> float:
    """Run SGD epochs in place.

    Parameters
    ----------
    model : nn.Module
        Stays on ``device``, in training mode and channels last.
    data : TensorDataset
        Inputs and labels; a label for every output position.
    epochs : int
    batch_size : int
        At most; an epoch's batches are of equal size, give or take one example, since
        BatchNorm refuses a last batch of one.
    lr : float
    weight_decay : float (default: 0.0)
    seed : int (default: 0)
        Decides the order of the examples and dropout; torch's own generator is left
        as it was.
    device : str (default: "cpu")

    Returns
    -------
    float
        Mean loss over all steps.
    """
    model = _placed(model, device).train()
    inputs, labels = (_placed(tensor, device) for tensor in data.tensors)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay)
    batches = math.ceil(len(inputs) / batch_size)
    losses = []
    with torch.random.fork_rng(_devices(device)):
        torch.manual_seed(seed)
        for _ in range(epochs):
            order = torch.randperm(len(inputs)).to(device)
            for chosen in order.tensor_split(batches):
                optimizer.zero_grad()
                loss = _loss(model(inputs[chosen]), labels[chosen])
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
    return float(torch.stack(losses).mean()) if losses else 0.0


@torch.no_grad()
def evaluate(
    model: nn.Module, data: TensorDataset, device: str = "cpu"
) -> tuple[float, float]:
    """Give mean loss and top-1 accuracy, over all output positions."""
    model = _placed(model, device).eval()
    loss, hits, count = 0.0, 0, 0
    parts = (tensor.split(EVALUATION_BATCH) for tensor in data.tensors)
    for inputs, labels in zip(*parts, strict=True):
        inputs, labels = _placed(inputs, device), _placed(labels, device)
        logits = model(inputs)
        loss += float(_loss(logits, labels, "sum"))
        hits += int((logits.argmax(-1) == labels).sum())
        count += labels.numel()
    return loss / count, hits / count


def _loss(
    logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    # (batch, classes) stays as it is; (batch, length, classes) becomes one long batch.
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction=reduction)


def _placed(what: T, device: str) -> T:
    """Move to a device, images and filters in the layout that suits it."""
    if isinstance(what, torch.Tensor) and what.dim() != 4:
        return what.to(device)
    # Channels last takes 0.6 to 0.9 of a step's time on a CPU for these networks.
    return what.to(device, memory_format=torch.channels_last)


def _devices(device: str) -> list[torch.device]:
    return [torch.device(device)] if torch.device(device).type == "cuda" else []
