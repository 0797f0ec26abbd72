"""A federation that needs nothing but the package: does an installation work?

``package_check.py`` runs this in clean environments, from an empty folder. It prints
one line.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp.strategy import FedAvg
from torch import nn

import flwr_autoflip
from flwr_autoflip import AutoFlip, AutoFlipClient, client_app, load_pruned, save_pruned

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from inprocess import InProcessGrid

NODES = 3


class Net(nn.Sequential):
    """A convolution, a norm and two linear layers."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(8 * 36, 16), nn.ReLU(), nn.Linear(16, 3)),
        )


class Client(AutoFlipClient):
    """Five steps on random data."""

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        """Train in place."""
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(IMAGES), LABELS)
            loss.backward()
            optimizer.step()
        return len(IMAGES), {"loss": float(loss.detach())}

    def test(self, model: nn.Module, config: dict[str, Any]) -> tuple[float, int, Any]:
        """Evaluate."""
        loss = nn.functional.cross_entropy(model(IMAGES), LABELS)
        return float(loss), len(IMAGES), {}


def client_fn(context: Context) -> AutoFlipClient:
    """Make a node's client."""
    return Client(Net, context)


torch.manual_seed(0)
IMAGES, LABELS = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
model = Net()
strategy = AutoFlip(FedAvg(min_train_nodes=NODES), model, IMAGES[:1], ledger_dir=".")
result = strategy.start(
    grid=InProcessGrid(client_app(client_fn), NODES),
    initial_arrays=ArrayRecord(model.state_dict()),
    num_rounds=2,
)
refused = [row for row in strategy.ledger.rows if row.get("status", "ok") != "ok"]
if refused:
    raise SystemExit(f"a node was refused: {refused[0]}")

small = strategy.deployable_model(result.arrays)
save_pruned("small.safetensors", small, strategy.deployable_plan)
loaded, _ = load_pruned("small.safetensors", Net)
with torch.no_grad():
    torch.testing.assert_close(loaded(IMAGES), small(IMAGES))
counts = [sum(p.numel() for p in m.parameters()) for m in (loaded, model)]
if counts[0] >= counts[1]:
    raise SystemExit("nothing was pruned.")
names = ("flwr", "torch", "numpy", "safetensors", "typer", "rich")
print(
    f"{counts[0]} of {counts[1]} parameters by {flwr_autoflip.__file__} with",
    ", ".join(f"{name} {version(name)}" for name in names),
)
