"""A tiny federation for tests of the adapters: model, data, clients."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from torch import nn

from flwr_autoflip import AutoFlipClient
from flwr_autoflip.graph.shrink import arrays_of, load_arrays_inplace
from flwr_autoflip.methods import Guided, Random

EXAMPLE = torch.zeros(1, 1, 8, 8)
RANDOM = Random(threshold="2x", rescale=False)
"""A method whose plan nothing decides but a seed."""


def exploring(cumulative: float = 0.5, **options: Any) -> dict[str, Any]:
    """Make options so that nodes explore and values travel exactly.

    Units that hold the ``cumulative`` score are kept; exact values can be compared to
    the last digit.
    """
    method = Guided(threshold=f"cumulative:{cumulative}")
    return {"method": method, "value_dtype": "float32", **options}


class TinyNet(nn.Module):
    """A convolution with BatchNorm and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.fc1 = nn.Linear(6 * 16, 8)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def make_model(seed: int = 0) -> TinyNet:
    """A model with the seed's weights."""
    torch.manual_seed(seed)
    return TinyNet()


def node_data(node: int, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """A node's own fixed examples."""
    generator = torch.Generator().manual_seed(node)
    images = torch.randn(count + node % 3, 1, 8, 8, generator=generator)
    return images, torch.randint(0, 3, (len(images),), generator=generator)


def sgd(model: nn.Module, node: int, epochs: int = 2) -> float:
    """Train on a node's data, full batches, no randomness."""
    images, labels = node_data(node)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3
    )
    loss = torch.zeros(())
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


class Client(AutoFlipClient):
    """The small client of most tests."""

    def __init__(self, context: Context) -> None:
        super().__init__(TinyNet, context)
        self.node = int(context.node_config["partition-id"])

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        epochs = int(config.get("local-epochs", 2))
        return len(node_data(self.node)[0]), {"loss": sgd(model, self.node, epochs)}

    def test(self, model: nn.Module, config: dict[str, Any]) -> tuple[float, int, Any]:
        images, labels = node_data(self.node)
        loss = F.cross_entropy(model(images), labels)
        return (
            float(loss),
            len(labels),
            {"parameters": sum(p.numel() for p in model.parameters())},
        )


def plain_app(mods: Any = None) -> ClientApp:
    """An ordinary Flower message app that knows nothing of pruning."""
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = TinyNet()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        node = int(context.node_config["partition-id"])
        loss = sgd(model.train(), node)
        metrics = MetricRecord({"num-examples": len(node_data(node)[0]), "loss": loss})
        content = RecordDict(
            {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        model = TinyNet()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        images, labels = node_data(int(context.node_config["partition-id"]))
        loss = float(F.cross_entropy(model.eval()(images), labels).detach())
        metrics = MetricRecord({"num-examples": len(labels), "loss": loss})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


class PlainNumPyClient(NumPyClient):
    """An ordinary dense client."""

    def __init__(self, node: int) -> None:
        self.node, self.model = node, TinyNet()

    def _load(self, parameters: list[np.ndarray]) -> None:
        load_arrays_inplace(
            self.model, dict(zip(self.model.state_dict(), parameters, strict=True))
        )

    def fit(self, parameters, config):  # type: ignore[no-untyped-def]
        self._load(parameters)
        loss = sgd(self.model.train(), self.node)
        arrays = list(arrays_of(self.model).values())
        return arrays, len(node_data(self.node)[0]), {"loss": loss}

    def evaluate(self, parameters, config):  # type: ignore[no-untyped-def]
        self._load(parameters)
        images, labels = node_data(self.node)
        loss = F.cross_entropy(self.model.eval()(images), labels)
        return float(loss.detach()), len(labels), {}


def numpy_app(mods: Any = None) -> ClientApp:
    """An ordinary NumPyClient app that knows nothing of pruning."""

    def client_fn(context: Context):  # type: ignore[no-untyped-def]
        return PlainNumPyClient(int(context.node_config["partition-id"])).to_client()

    return ClientApp(client_fn=client_fn, mods=mods)


def initial(seed: int = 0) -> ArrayRecord:
    """Initial arrays of the model."""
    return ArrayRecord(make_model(seed).state_dict())


def config_of(message: Message) -> ConfigRecord:
    """The single ConfigRecord of a message."""
    (record,) = message.content.config_records.values()
    return record
