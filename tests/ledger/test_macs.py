"""Formulas of operators, by hand; and the same wherever they run."""

from typing import Any

import pytest
import torch
from torch import nn

from flwr_autoflip.ledger.cost import count_macs
from flwr_autoflip.ledger.macs import MacCounter
from flwr_autoflip.ledger.meter import measure

T, B = 5, 3
LAYER = dict(d_model=8, nhead=2, dim_feedforward=16, batch_first=True)
ATTENTION = 4 * 8 * 8 * T + 2 * 8 * T * T
"""Four projections, queries on keys, scores on values."""

CASES: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "lstm": (nn.LSTM(4, 6, batch_first=True), (B, T, 4), T * 4 * (4 + 6) * 6),
    "both ways, two layers": (
        nn.LSTM(4, 6, 2, bidirectional=True, batch_first=True),
        (B, T, 4),
        T * 2 * 4 * ((4 + 6) * 6 + (12 + 6) * 6),
    ),
    "gru": (nn.GRU(4, 6, batch_first=True), (B, T, 4), T * 3 * (4 + 6) * 6),
    "rnn": (nn.RNN(4, 6, batch_first=True), (B, T, 4), T * (4 + 6) * 6),
    "attention": (
        nn.TransformerEncoderLayer(**LAYER),  # type: ignore[arg-type]
        (B, T, 8),
        ATTENTION + 2 * 8 * 16 * T,
    ),
    "convolution": (nn.Conv2d(2, 3, 3), (B, 2, 6, 6), 4 * 4 * 9 * 2 * 3),
}


@pytest.mark.parametrize(
    "grad", [torch.enable_grad, torch.no_grad, torch.inference_mode]
)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_node_and_server_count_alike(name: str, training: bool, grad: Any) -> None:
    model, shape, macs = CASES[name]
    x = torch.randn(shape)

    with grad(), measure(model.train(training)) as spent:
        model(x)

    assert (spent.macs or 0) + (spent.eval_macs or 0) == B * macs
    assert (spent.macs == 0) == (grad is not torch.enable_grad)
    assert count_macs(model, x) == macs


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_counting_changes_nothing(name: str, grad: Any) -> None:
    model, shape, _ = CASES[name]
    x = torch.randn(shape)

    with grad():
        expected = model.eval()(x)
        with MacCounter():
            counted = model(x)

    torch.testing.assert_close(counted, expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padded_sequences_count_as_they_run() -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(**LAYER),  # type: ignore[arg-type]
        1,
    ).eval()
    padding = torch.arange(T) >= torch.tensor([[T], [2]])

    with torch.no_grad(), measure(model) as spent:
        model(torch.randn(2, T, 8), src_key_padding_mask=padding)

    linear = 4 * 8 * 8 + 2 * 8 * 16
    assert spent.eval_macs == (T + 2) * linear + 2 * 8 * (T**2 + 2**2)


def test_evaluation_keeps_the_fast_path_and_says_what_it_cannot_see() -> None:
    layer = nn.TransformerEncoderLayer(**LAYER)  # type: ignore[arg-type]
    model = nn.Sequential(nn.Linear(8, 8), layer).eval()
    x = torch.randn(B, T, 8)

    with torch.no_grad():
        expected = model(x)
        with measure(model) as whole:
            counted = model(x)
        with measure(model) as parts:
            model[1](model[0](x))

    torch.testing.assert_close(counted, expected, rtol=0, atol=0)
    assert whole.eval_macs == B * (8 * 8 * T + CASES["attention"][2])
    assert (parts.eval_examples, parts.eval_macs) == (B, None)
    assert "calls of '1' cannot be watched" in parts.uncounted


def test_products_with_vectors() -> None:
    matrix, vector = torch.randn(3, 4), torch.randn(4)

    with MacCounter() as counter:
        _ = matrix @ vector, torch.addmv(torch.zeros(3), matrix, vector)
        _ = (
            torch.dot(vector, vector),
            nn.functional.bilinear(matrix, matrix, torch.randn(2, 4, 4)),
        )

    assert (counter.macs, counter.fault) == (12 + 12 + 4 + 3 * 2 * 4 * 4, "")
