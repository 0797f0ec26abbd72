"""One federated round of a two-layer LSTM with half of its hidden units."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flwr_autoflip.graph.pack import expand, pack, pack_small, unpack_small
from flwr_autoflip.graph.shrink import arrays_of, build_small, load_arrays_inplace
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.methods import AutoFlipPolicy
from flwr_autoflip.methods.guidance import deviation
from flwr_autoflip.methods.threshold import Quantile

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


def main() -> None:
    """Explore, halve, train one round, and say what it took."""
    torch.manual_seed(0)
    server = Text()
    layout = trace(
        server, torch.zeros(1, LENGTH, dtype=torch.long), ignored_layers=("embed",)
    )
    weights, reports = arrays_of(server), []
    for text in LINES:
        explorer = Text()
        load_arrays_inplace(explorer, weights)
        train(explorer, text, epochs=5)
        moved = arrays_of(explorer)
        reports.append({n: deviation(weights[n], moved[n]) for n in weights})
    plan = AutoFlipPolicy(Quantile(0.5))(1, layout, weights, reports)
    replies, losses = [], []
    for text in LINES:
        small = build_small(Text, plan)
        load_arrays_inplace(small, unpack_small(pack(weights, plan), plan))
        losses.append(train(small, text, epochs=40))
        replies.append(pack_small(arrays_of(small), plan))
    weights = expand(weights, np.mean(replies, axis=0), plan)
    print(f"hidden units  {len(plan.keep['lstm'])} of 64")
    print(f"parameters    {plan.num_parameters} of {layout.num_parameters}")
    chance = np.log(len(LETTERS))
    print(f"loss          {chance:.2f} -> {np.mean(losses):.2f} on the nodes")


if __name__ == "__main__":
    main()
