"""PruneFL's first client: what it pruned is told by values that did not move."""

import pytest
import torch
import torch.nn.functional as F
from models import build
from torch import nn

from flwr_autoflip.methods.baselines.initial_pruning import (
    Schedule,
    prune_initially_inplace,
)
from flwr_autoflip.methods.baselines.prunefl import RoundTime

IMAGES, LABELS = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
BATCHES = [(IMAGES[:6], LABELS[:6]), (IMAGES[6:], LABELS[6:])]
DEAR = RoundTime(1.0, 1.0, 0.0)
"""So dear that many weights are pruned."""


def prune(model: nn.Module, **options: object) -> float:
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3
    )
    return prune_initially_inplace(
        model,
        optimizer,
        F.cross_entropy,
        BATCHES,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("kept", [None, 150])
def test_pruned_weights_hold_their_first_values_and_others_moved(
    kept: int | None,
) -> None:
    model = build("conv_flat")
    schedule = Schedule(max_passes=9, interval=3)

    density = prune(model, schedule=schedule, time=DEAR, kept=kept)

    before = dict(build("conv_flat").named_parameters())
    same = total = 0
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            same += int((parameter == before[name]).sum())
            total += parameter.numel()
        else:
            assert (parameter != before[name]).any(), name
    assert 0.1 < density < 0.9
    assert same == total - round(density * total)
    assert kept is None or round(density * total) == kept


def test_pruned_weights_are_zero_while_others_train() -> None:
    zeros: list[int] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(64, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                zeros.append(int((self.fc1.weight == 0).sum()))
            return self.fc2(F.relu(self.fc1(x.flatten(1))))

    torch.manual_seed(0)

    prune(Spy(), schedule=Schedule(max_passes=4, interval=2), time=DEAR)

    # Adjusted after passes 1 and 3, two batches each.
    assert zeros[0] == zeros[1] == 0
    assert zeros[2] == zeros[3] == zeros[4] == zeros[5] > 64
    assert zeros[6] == zeros[7] != zeros[5]


def test_it_ends_when_density_is_stable() -> None:
    passes = 0
    model = build("conv_flat")

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return F.cross_entropy(outputs, targets)

    schedule = Schedule(interval=2, patience=3, tolerance=1.0)
    prune_initially_inplace(
        model, torch.optim.SGD(model.parameters(), lr=0.1), loss, BATCHES, schedule
    )

    # Adjusted after passes 1, 3, 5, 7; the last three compare with one before.
    assert passes == 7 * len(BATCHES)


def test_no_adjustment_before_it_has_learnt_something() -> None:
    model = build("conv_flat")

    density = prune(
        model, schedule=Schedule(max_passes=3, interval=1, min_accuracy=1.1), time=DEAR
    )

    assert density == 1.0
