"""What a node refuses costs it little memory, and leaves nothing behind."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from federation import EXAMPLE, RANDOM, Client, TinyNet, initial, plain_app
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from grid import LocalGrid
from torch import nn

from examples.benchmarks import refused
from flwr_autoflip import (
    AutoFlip,
    AutoFlipClient,
    AutoFlipError,
    autoflip_mod,
    client_app,
    wire,
)
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.wire.encoding import Encoding


@pytest.mark.slow
@pytest.mark.parametrize("name", ["many groups", "own mask"])
def test_a_bomb_takes_less_than_two_models_and_50_mb(name: str) -> None:
    own = sum(p.nbytes for p in refused.make_model().parameters()) / 1e6

    for row in refused.run([name]):
        assert row["reason"].startswith("WireError"), row
        assert row["mb"] < 2 * own + 50, row


class Half(TinyNet):
    """The model in another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.half()


class Renamed(TinyNet):
    """The model with a layer of another name."""

    def __init__(self) -> None:
        super().__init__()
        self.last = self.fc2
        del self.fc2


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Half, "conv.weight: expected float32 (6, 1, 3, 3), got float16 (6, 1, 3, 3)"),
        (Renamed, "fc2.weight: expected float32 (3, 8), got nothing"),
    ],
)
def test_a_node_reads_nothing_about_another_model(other: Any, words: str) -> None:
    class Another(Client):
        def __init__(self, context: Context) -> None:
            super().__init__(context)
            self.model_fn = other

    grid = LocalGrid(client_app(Another), 2)
    strategy = AutoFlip(FedAvg(fraction_evaluate=0.0), TinyNet(), EXAMPLE)

    words = f"this node's model is not the server's: {words}"
    with pytest.raises(AutoFlipError, match=re.escape(words)):
        strategy.start(grid, initial(), num_rounds=1)

    assert all(not context.state for context in grid.contexts.values())


def test_the_mod_takes_what_an_honest_message_can_say() -> None:
    """One unit of a hundred is kept, in 8 bits, of a model of 90 MB."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2500, 4000), nn.ReLU(), nn.Linear(4000, 3000))
    layout = trace(model.to_empty(device="cpu"), torch.zeros(1, 2500))
    plan = Plan(layout, {"0": np.arange(40)})
    values = np.random.default_rng(0).random(plan.num_values, np.float32)
    sent = wire.Instructions("train", plan, values, Encoding("int8"))

    read = wire.read_request(wire.request_content(sent, RecordDict()))

    assert read.instructions.plan.num_values == plan.num_values


def test_the_mod_says_which_node_takes_more() -> None:
    content = refused.BOMBS["huge shapes"]()
    grid = LocalGrid(plain_app([autoflip_mod]), 1)

    reply = grid.answer(Message(content, dst_node_id=100, message_type="train"))

    assert "a model of 33554 MB; for a message of this length" in reply.error.reason
    assert "AutoFlipClient knows its model" in reply.error.reason


def test_a_model_fn_may_give_another_model_every_round() -> None:
    seen: list[float] = []

    class Dropping(nn.Sequential):
        """A model with an option, which grows round by round."""

        def __init__(self) -> None:
            drop = nn.Dropout(len(seen) / 4)
            super().__init__(nn.Linear(4, 8), drop, nn.Linear(8, 2))

    class Changing(AutoFlipClient):
        def train(self, model: nn.Module, config: dict[str, Any]) -> Any:
            seen.append(model[1].p)  # type: ignore[index]
            model[0].bias.data += 0.01  # type: ignore[index]
            return 1, {}

    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    model = Dropping()
    strategy = AutoFlip(inner, model, torch.zeros(1, 4), method=RANDOM)
    grid = LocalGrid(client_app(lambda context: Changing(Dropping, context)), 1)

    strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=3)

    assert seen == [0.0, 0.25, 0.5]
