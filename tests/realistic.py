"""A federation as they are met outside of tests: what nodes have in common is little.

Nodes hold 2 to 400 examples and one holds none; models train in training mode, with
BatchNorm; batches are dicts, keyword arguments and sequence-first tensors; weights are
tied, or pretrained and partly frozen; each node reports metrics of its own. Every case
runs in one process (:func:`run`) and as a Flower app (``realistic_app``).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from torch import Tensor, nn

from examples.inprocess import InProcessGrid
from flwr_autoflip import AutoFlip, AutoFlipClient, client_app

SIZES = (400, 2, 4, 9, 40, 0)
"""Examples of each node."""

EMPTY = SIZES.index(0)
BATCH, CLASSES, LENGTH, WORDS = 8, 4, 5, 11

Batch = dict[str, Tensor]


# --- Models ---


class Pictures(nn.Module):
    """Convolutions with BatchNorm; takes ``(batch, 1, 8, 8)``."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Linear(12 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


def pretrained_pictures() -> Pictures:
    """Pictures whose first convolution is learnt, and fixed."""
    model = Pictures()
    generator = torch.Generator().manual_seed(9)
    for weight in (model.body[0].weight, model.body[4].weight):
        weight.data.normal_(0, 0.3, generator=generator)
    model.body[0].weight.requires_grad_(False)
    return model


class Words(nn.Module):
    """A language model whose head is its embedding; takes keywords, says a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = self.embed(tokens) * mask[..., None]
        hidden = self.norm(hidden + self.down(F.relu(self.up(hidden))))
        return {"logits": self.head(hidden)}


class Signals(nn.Module):
    """An LSTM over ``(time, batch, features)``, PyTorch's own order."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 10)
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.head(out[-1])


# --- Data ---


def _labels(count: int, node: int) -> Tensor:
    """Labels of a node: most are of one class."""
    generator = torch.Generator().manual_seed(node)
    drawn = torch.randint(0, CLASSES, (count,), generator=generator)
    usual = torch.rand(count, generator=generator) < 0.6
    return torch.where(usual, node % CLASSES, drawn)


def pictures(count: int, node: int) -> Batch:
    """Blobs, one quarter of the picture a class."""
    labels = _labels(count, node)
    generator = torch.Generator().manual_seed(1000 + node)
    images = torch.randn(count, 1, 8, 8, generator=generator)
    for i, label in enumerate(labels.tolist()):
        row, column = 4 * (label // 2), 4 * (label % 2)
        images[i, 0, row : row + 4, column : column + 4] += 2.0
    return {"image": images, "label": labels}


def words(count: int, node: int) -> Batch:
    """Counting upwards from any word; the mask hides the end of some."""
    generator = torch.Generator().manual_seed(2000 + node)
    first = torch.randint(0, WORDS, (count, 1), generator=generator)
    tokens = (first + torch.arange(LENGTH + 1)) % WORDS
    lengths = torch.randint(2, LENGTH + 1, (count, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).float()
    return {"tokens": tokens[:, :-1], "mask": mask, "label": tokens[:, 1:]}


def signals(count: int, node: int) -> Batch:
    """Sums of three noisy features; examples on the second axis."""
    labels = _labels(count, node)
    generator = torch.Generator().manual_seed(3000 + node)
    series = torch.randn(LENGTH, count, 3, generator=generator)
    return {"series": series + labels[None, :, None], "label": labels}


def batches(data: Batch, axes: Mapping[str, int]) -> Iterator[Batch]:
    """Cut data into batches; a last one of a single example goes with the one before.

    As loaders do it that know of BatchNorm.
    """
    count = len(data["label"])
    for start in range(0, count, BATCH):
        stop = count if count - start - BATCH == 1 else min(start + BATCH, count)
        if stop - start > 1 or count == 1:
            yield {
                key: value.narrow(axes.get(key, 0), start, stop - start)
                for key, value in data.items()
            }
        if stop == count:
            return


# --- Cases ---


@dataclass(frozen=True)
class Case:
    """One kind of model with its data.

    ``make`` gives so many examples of a node, ``"label"`` among them; ``call`` gives
    logits, classes last; ``macs`` are the forward ones of an example in the dense
    model, by hand; ``axes`` say where examples are not on the first axis.
    """

    model_fn: Callable[[], nn.Module]
    example: Any
    make: Callable[[int, int], Batch]
    call: Callable[[nn.Module, Batch], Tensor]
    macs: int
    ignored_layers: tuple[str, ...] = ()
    axes: Mapping[str, int] | None = None


CASES: dict[str, Case] = {
    name: Case(
        model_fn,
        torch.zeros(1, 1, 8, 8),
        pictures,
        lambda model, batch: model(batch["image"]),
        64 * 8 * 9 + 16 * 12 * 8 * 9 + 48 * CLASSES,
    )
    for name, model_fn in (("pictures", Pictures), ("pretrained", pretrained_pictures))
}
CASES |= {
    "words": Case(
        Words,
        {
            "tokens": torch.zeros(1, LENGTH, dtype=torch.long),
            "mask": torch.ones(1, LENGTH),
        },
        words,
        lambda model, batch: model(mask=batch["mask"], tokens=batch["tokens"])[
            "logits"
        ],
        LENGTH * (8 * 16 + 16 * 8 + 8 * WORDS),
        ignored_layers=("embed",),
    ),
    "signals": Case(
        Signals,
        torch.zeros(LENGTH, 1, 3),
        signals,
        lambda model, batch: model(batch["series"]),
        LENGTH * 4 * (3 + 10) * 10 + 10 * CLASSES,
        axes={"series": 1},
    ),
}


# --- Nodes ---


class Node(AutoFlipClient):
    """A node of one of the cases, with its own amount of data and its own metrics."""

    def __init__(self, context: Context) -> None:
        self.case = CASES[str(context.run_config["case"])]
        super().__init__(self.case.model_fn, context)
        self.number = int(context.node_config["partition-id"])
        self.data = self.case.make(SIZES[self.number % len(SIZES)], self.number)

    def _batches(self) -> Iterator[Batch]:
        return batches(self.data, self.case.axes or {})

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = self.case.call(model, batch)
        return F.cross_entropy(logits.flatten(0, -2), batch["label"].flatten())

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        """One epoch of SGD, in training mode."""
        moving = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(moving, lr=0.05, momentum=0.9)
        losses = []
        for batch in self._batches():
            optimizer.zero_grad()
            loss = self._loss(model, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        metrics: dict[str, float] = {"loss": sum(losses) / max(1, len(losses))}
        if self.number % 2:
            metrics[f"loss-of-node-{self.number}"] = metrics["loss"]
        if self.number == 2:
            del metrics["loss"]
        return len(self.data["label"]), metrics

    def test(self, model: nn.Module, config: dict[str, Any]) -> tuple[float, int, Any]:
        """Loss and accuracy on the node's own data."""
        count = len(self.data["label"])
        if not count:
            return float("nan"), 0, {"accuracy": float("nan")}
        logits = self.case.call(model, self.data)
        right = (logits.argmax(-1) == self.data["label"]).float().mean()
        return float(self._loss(model, self.data)), count, {"accuracy": float(right)}


app: ClientApp = client_app(Node)


def build(name: str, inner: Strategy | None = None, **options: Any) -> AutoFlip:
    """Make a case's strategy."""
    case = CASES[name]
    torch.manual_seed(0)
    inner = FedAvg(min_available_nodes=len(SIZES)) if inner is None else inner
    options = {"ignored_layers": case.ignored_layers, **options}
    return AutoFlip(inner, case.model_fn(), case.example, **options)


def initial(name: str) -> ArrayRecord:
    """Give the weights that a case starts from."""
    torch.manual_seed(0)
    return ArrayRecord(CASES[name].model_fn().state_dict())


def run(
    name: str, rounds: int = 3, inner: Strategy | None = None, **options: Any
) -> tuple[AutoFlip, Result]:
    """Run a case in this process."""
    strategy = build(name, inner, **options)
    grid = InProcessGrid(app, len(SIZES), {"case": name})
    return strategy, strategy.start(grid, initial(name), num_rounds=rounds)


def accuracy(name: str, strategy: AutoFlip, result: Result) -> float:
    """Accuracy of the deployable model on every node's kind of data."""
    case = CASES[name]
    model = strategy.deployable_model(result.arrays)
    data = [case.make(100, node) for node in range(CLASSES)]
    with torch.no_grad():
        rights = [case.call(model, d).argmax(-1) == d["label"] for d in data]
    return float(torch.cat([right.flatten() for right in rights]).float().mean())
