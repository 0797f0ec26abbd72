"""Examples and MACs that nodes book, by hand, however an app calls its model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from examples.inprocess import InProcessGrid
from flwr_autoflip import AutoFlip, AutoFlipClient, client_app
from flwr_autoflip.errors import AutoFlipWarning
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.ledger.page.overview import figures
from flwr_autoflip.ledger.page.runs import Run

Train = Callable[[Any], None]
STEP = 3
"""MACs of a training step over those of its forward pass."""


def run(
    model_fn: Callable[[], nn.Module],
    example: Any,
    train: Train,
    *,
    test: Train | None = None,
    **options: Any,
) -> AutoFlip:
    """Run a round of one node that trains the whole model as it is told."""

    class Client(AutoFlipClient):
        def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
            train(model)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.01  # a step
            return 7, {}

        def test(self, model: nn.Module, config: dict[str, Any]) -> Any:
            assert test is not None
            test(model)
            return 0.0, 7, {}

    ones = dict.fromkeys(("train_nodes", "evaluate_nodes", "available_nodes"), 1)
    least: Any = {f"min_{name}": count for name, count in ones.items()}
    inner = FedAvg(**least, fraction_evaluate=0.0 if test is None else 1.0)
    model = model_fn()
    strategy = AutoFlip(inner, model, example, **{"method": "dense"} | options)

    def app(context: Context) -> AutoFlipClient:
        return Client(model_fn, context)

    grid = InProcessGrid(client_app(app), 1)
    strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=1)
    return strategy


def booked(strategy: AutoFlip, phase: str = "train") -> dict[str, Any]:
    """Give the one row of a phase."""
    (row,) = [r for r in node_rows(strategy.ledger.rows) if r["phase"] == phase]
    assert row["status"] == "ok", row["reason"]
    return row


def backward(*outputs: Tensor) -> None:
    sum(x.sum() for x in outputs).backward()  # type: ignore[union-attr]


class Two(nn.Module):
    """Two inputs to a hidden layer: 3 * 5 + 2 * 5 + 5 * 4 = 45 MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 5), nn.Linear(2, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(a) + self.right(b)))


class ByKeyword(Two):
    """Takes nothing else."""

    def forward(self, *, a: Tensor, b: Tensor) -> Tensor:
        return super().forward(a, b)


class ByDict(Two):
    """Takes a dict."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(batch["a"], batch["b"])


A, B = torch.randn(1, 3), torch.randn(1, 2)


def two(count: int) -> dict[str, Tensor]:
    return {"a": torch.randn(count, 3), "b": torch.randn(count, 2)}


@pytest.mark.parametrize(
    ("model_fn", "example", "call"),
    [
        (Two, (A, B), lambda m, n: m(*two(n).values())),
        (Two, {"a": A, "b": B}, lambda m, n: m(**two(n))),
        (ByKeyword, {"a": A, "b": B}, lambda m, n: m(**two(n))),
        (ByDict, ({"a": A, "b": B},), lambda m, n: m(two(n))),
    ],
    ids=["tuple", "keywords", "keyword-only", "positional dict"],
)
def test_batches_by_hand(model_fn: Any, example: Any, call: Any) -> None:
    def train(model: nn.Module) -> None:
        for count in (16, 16, 4):  # the last batch is smaller
            backward(call(model, count))
        with torch.no_grad():  # a look at the loss in between
            call(model, 10)

    row = booked(run(model_fn, example, train))

    assert (row["examples"], row["eval_examples"]) == (36, 10)
    assert (row["forward_macs"], row["eval_macs"]) == (36 * 45, 10 * 45)
    assert row["macs"] == 45 * (STEP * 36 + 10)
    assert (row["macs_per_example"], row["uncounted"]) == (45, "")


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_evaluation_by_hand(grad: Any) -> None:
    def test(model: nn.Module) -> None:
        with grad():
            model(**two(9))

    strategy = run(Two, (A, B), lambda m: backward(m(**two(2))), test=test)
    row = booked(strategy, "evaluate")

    assert (row["examples"], row["eval_examples"]) == (0, 9)
    assert (row["macs"], row["uncounted"]) == (9 * 45, "")


class Sequence(nn.Module):
    """An LSTM of 3 -> 10 and a head of 4."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.first = batch_first
        self.lstm = nn.LSTM(3, 10, batch_first=batch_first)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.head(out[:, -1] if self.first else out[-1])


def lstm_macs(steps: int) -> int:
    """Four gates of (3 + 10) * 10 a step, and a head of 10 * 4."""
    return steps * 4 * (3 + 10) * 10 + 40


@pytest.mark.parametrize(("batch_first", "size"), [(False, 1), (False, 2), (True, 2)])
def test_sequences_come_in_either_order(batch_first: bool, size: int) -> None:
    def shape(steps: int, count: int) -> Tensor:
        return torch.randn((count, steps, 3) if batch_first else (steps, count, 3))

    def train(model: nn.Module) -> None:
        backward(model(shape(5, 16)), model(shape(5, 16)))
        with torch.inference_mode():
            model(shape(8, 2))  # longer ones cost more

    row = booked(run(lambda: Sequence(batch_first), shape(5, size), train))

    assert (row["examples"], row["eval_examples"]) == (32, 2)
    assert row["macs_per_example"] == lstm_macs(5) == 2640
    assert (row["forward_macs"], row["eval_macs"]) == (32 * 2640, 2 * lstm_macs(8))


class Timed(nn.Module):
    """A diffusion model's order of arguments: when, then what. 12 + 20 MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, t: Any, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)) * t)


@pytest.mark.parametrize("t", [2, torch.tensor(0.5)])
def test_a_scalar_may_come_first(t: Any) -> None:
    def train(model: nn.Module) -> None:
        backward(model(t, torch.randn(16, 3)))

    row = booked(run(Timed, (t, torch.randn(1, 3)), train))

    assert (row["examples"], row["forward_macs"]) == (16, 16 * (12 + 20))


class AutoEncoder(nn.Module):
    """As Lightning modules are: training calls the parts. 6 * 4 + 4 * 6 MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
        self.decoder = nn.Linear(4, 6)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x))

    def training_step(self, x: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.decoder(self.encoder(x)), x)


X = torch.randn(8, 6)


@pytest.mark.parametrize(
    ("train", "examples", "macs"),
    [
        (lambda m: backward(*[m.training_step(X) for _ in range(3)]), 24, 24 * 48),
        # examples of parts are no new ones where the model itself is called
        (lambda m: backward(m(X), m.encode(X[:5])), 8, 8 * 48 + 5 * 24),
        (lambda m: backward(m.encode(X[:5])), 5, 5 * 24),
    ],
    ids=["training_step", "forward and encode", "encode"],
)
def test_parts_of_a_model_count(train: Train, examples: int, macs: int) -> None:
    row = booked(run(AutoEncoder, X[:1], train))

    assert (row["examples"], row["forward_macs"]) == (examples, macs)
    assert row["uncounted"] == ""


class Masked(nn.Module):
    """As Hugging Face's encoders are: a mask is looked at. 6 * 4 + 4 * 3 MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        if not attention_mask.bool().all().item():
            x = x * attention_mask
        return self.down(torch.relu(self.up(x)))


def test_a_model_that_looks_at_its_mask_runs() -> None:
    example = {"x": X[:1], "attention_mask": torch.ones(1, 6)}

    def train(model: nn.Module) -> None:
        backward(model(X, attention_mask=torch.ones(8, 6)))

    row = booked(run(Masked, example, train, method="l1", macs=0.5))

    # Two of four units: 6 * 2 + 2 * 3
    assert (row["examples"], row["macs_per_example"]) == (8, 18)
    assert row["forward_macs"] == 8 * 18


# --- What cannot be counted ---


class Strings(nn.Module):
    """Takes words. 6 * 4 + 4 * 3 MACs a word."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, words: Any) -> Tensor:
        x = torch.stack([torch.full((6,), float(len(word))) for word in words])
        return self.down(torch.relu(self.up(x)))


def test_examples_that_no_tensor_tells_are_unknown() -> None:
    def train(model: nn.Module) -> None:
        backward(model(["one", "two"]))
        backward(model(word for word in ("one", "two")))

    row = booked(run(Strings, (["one"],), train))

    assert row["examples"] is None
    assert "no tensor of a call says how many" in row["uncounted"]
    assert row["forward_macs"] == 4 * 36  # these are known all the same


def test_work_that_nobody_saw_is_unknown_and_shown_so() -> None:
    strategy = run(Two, (A, B), lambda model: None)
    row = booked(strategy)

    counts = ("examples", "eval_examples", "forward_macs", "eval_macs", "macs")
    assert [row[key] for key in counts] == [None] * 5
    assert "neither the model nor a part" in row["uncounted"]
    cell = figures(Run("a", strategy.ledger.rows))["client MACs"]
    assert (cell.shown, cell.beside) == ("unknown", "unknown for 1 of 1 messages")


@torch.library.custom_op("autoflip_tests::scaled", mutates_args=())
def scaled(x: Tensor) -> Tensor:
    """Compute what nobody has a formula for."""
    return 2 * x


scaled.register_autograd(lambda ctx, grad: 2 * grad)


class Foreign(Two):
    """Calls an operator of somebody else's."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return super().forward(scaled(a), b)


def test_macs_of_foreign_operators_are_unknown_and_the_run_goes_on() -> None:
    def train(model: nn.Module) -> None:
        backward(model(**two(16)))

    with pytest.warns(AutoFlipWarning, match="MACs of Foreign cannot be counted"):
        row = booked(run(Foreign, (A, B), train))

    assert (row["examples"], row["macs"], row["macs_per_example"]) == (16, None, None)
    assert "autoflip_tests.scaled" in row["uncounted"]


def test_counting_changes_no_digit() -> None:
    outputs: list[Tensor] = []

    def train(model: nn.Module) -> None:
        x = torch.randn(5, 4, 3)
        outputs.extend(model(x).detach() for _ in range(2))  # counted, then known
        with torch.inference_mode():
            outputs.extend(model(x).clone() for _ in range(2))

    run(lambda: Sequence(False), torch.randn(5, 1, 3), train)

    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=0, atol=0)


def test_a_forward_that_fails_leaves_counting_whole() -> None:
    def train(model: nn.Module) -> None:
        with pytest.raises(RuntimeError):
            model(torch.randn(4, 9), torch.randn(4, 2))
        backward(model(**two(16)))

    assert booked(run(Two, (A, B), train))["forward_macs"] == 16 * 45
