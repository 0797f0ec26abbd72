"""An app as a user writes it, for a type checker that sees the installed package.

``package_check.py`` runs ``mypy --strict`` on this in a clean environment.
"""

from typing import Any, assert_type

import torch
from flwr.app import ArrayRecord, Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from torch import nn

from flwr_autoflip import (
    AutoFlip,
    AutoFlipClient,
    Plan,
    autoflip_mod,
    client_app,
    load_pruned,
)
from flwr_autoflip.methods import L1


class Client(AutoFlipClient):
    """What a user overrides."""

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        """Train in place."""
        return 1, {}


def client_fn(context: Context) -> Client:
    """Make a node's client."""
    return Client(lambda: nn.Linear(4, 2), context, budget="macs:0.5")


def run(grid: Grid, model: nn.Module) -> nn.Module:
    """Run one federated training."""
    method = L1(threshold="2x")
    strategy = AutoFlip(FedAvg(), model, torch.zeros(1, 4), method=method)
    arrays = ArrayRecord(model.state_dict())
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=1)
    assert_type(result, Result)
    assert_type(strategy.deployable_plan, Plan)
    return strategy.deployable_model(result.arrays)


assert_type(client_app(client_fn), ClientApp)
assert_type(load_pruned("small.safetensors", nn.Identity), tuple[nn.Module, Plan])
existing = ClientApp(mods=[autoflip_mod])
wrong = AutoFlip(FedAvg(), nn.Identity(), None, rounds=3)  # type: ignore[call-arg]
