"""One small model with every kind of tensor, and what its messages are made of."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.graph.tracing.trace import trace


class Net(nn.Module):
    """A convolution with BatchNorm (floats and a counter) and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc1 = nn.Linear(4 * 4, 6)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, 1, 6, 6)`` to logits ``(batch, 3)``."""
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


EXAMPLE = torch.zeros(1, 1, 6, 6)
torch.manual_seed(0)
MODEL = Net()
LAYOUT = trace(MODEL, EXAMPLE)
ARRAYS = {name: np.array(array) for name, array in arrays_of(MODEL).items()}
DENSE = dense_plan(LAYOUT)
SMALL = Plan(LAYOUT, {"conv": np.array([0, 2, 3]), "fc1": np.array([1, 2, 5])})
_mask = np.arange(6 * 16).reshape(6, 16) % 3 > 0
MASKED = Plan(LAYOUT, SMALL.keep, {"fc1.weight": _mask})
PLANS = (DENSE, SMALL, MASKED)
