"""Two federated rounds of a two-layer LSTM, driven as the server drives a method.

Round 1 trains the dense model, and the method learns from it which half of the hidden
units is kept; round 2 trains those. No Flower.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flwr_autoflip import expand, methods, trace
from flwr_autoflip.graph.shrink import arrays_of, build_small, load_arrays_inplace
from flwr_autoflip.methods.guidance import deviation

LINES = (
    "the server keeps the whole model and every node a part of it. ",
    "what moves is needed, what stands still can stay at home. ",
    "a hidden unit is its rows in all four gates and its column. ",
)
LETTERS = sorted(set("".join(LINES)))
LENGTH = 32


class Text(nn.Module):
    """Next letter: embedding, two LSTM layers, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(LETTERS), 8)
        self.lstm = nn.LSTM(8, 64, num_layers=2, batch_first=True)
        self.fc = nn.Linear(64, len(LETTERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, length)`` letters to logits of each next letter."""
        return self.fc(self.lstm(self.embed(x))[0])


def train(model: nn.Module, text: str, epochs: int) -> float:
    """Train on every window of a node's text; give the last loss."""
    codes = torch.tensor([LETTERS.index(letter) for letter in text * 8])
    windows = codes.unfold(0, LENGTH + 1, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loss = torch.zeros(())
    for _ in range(epochs):
        optimizer.zero_grad()
        logits = model(windows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def run_round(
    number: int, method: methods.Method[Any], state: Any, weights: Any
) -> tuple[Any, Any, float]:
    """Ask the method, let every node train what it asks for, and let it learn."""
    nodes = range(len(LINES))
    order = method.order(state, number, nodes)
    replies, results, losses = [], [], []
    for node in nodes:
        small = build_small(Text, order.plan)  # the dense model takes no memory
        load_arrays_inplace(
            small, {n: order.plan.take(n, a) for n, a in weights.items()}
        )
        losses.append(train(small, LINES[node], epochs=20))
        replies.append(expand(weights, arrays_of(small), order.plan))
        report = {name: deviation(weights[name], replies[-1][name]) for name in weights}
        results.append(methods.Result(node, 1.0, report))
    weights = {name: np.mean([r[name] for r in replies], axis=0) for name in weights}
    done = methods.Round(number, order, results, weights)
    state, weights = method.learn(state, done)
    return state, weights, float(np.mean(losses))


def main() -> None:
    """Explore, halve, train, and say what it took."""
    torch.manual_seed(0)
    server = Text()
    example = torch.zeros(1, LENGTH, dtype=torch.long)
    layout = trace(server, example, ignored_layers=("embed",))
    method = methods.Guided(threshold={"lstm": 32})
    state, weights = method.begin(layout, arrays_of(server))
    for number in (1, 2):
        plan = method.order(state, number, []).plan
        state, weights, loss = run_round(number, method, state, weights)
        print(f"round {number}")
        print(f"  hidden units  {len(plan.keep['lstm'])} of 64")
        print(f"  parameters    {plan.num_parameters} of {layout.num_parameters}")
        print(f"  loss          {np.log(len(LETTERS)):.2f} -> {loss:.2f} on the nodes")


if __name__ == "__main__":
    main()
