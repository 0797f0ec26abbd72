"""Which axis is the batch, and what a batch is."""

import json
import zlib
from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from flwr_autoflip.errors import AutoFlipWarning, WireError
from flwr_autoflip.graph.batch import arguments, batch_size
from flwr_autoflip.graph.codec import decode_layout, encode_layout, layout_digest
from flwr_autoflip.graph.tracing.trace import trace


class Net(nn.Module):
    """A part whose batch is to be found, and a hidden layer."""

    def __init__(self, width: int, **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.hidden, self.head = nn.Linear(width, 6), nn.Linear(6, 3)

    def classify(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(x)))


class Recurrent(Net):
    def __init__(self, first: bool) -> None:
        super().__init__(5, gru=nn.GRU(4, 5, batch_first=first))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        out, _ = self.parts["gru"](x, h)
        return self.classify(out)


class Attention(Net):
    def __init__(self, first: bool) -> None:
        attention = nn.MultiheadAttention(4, 2, batch_first=first)
        super().__init__(4, attention=attention)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> dict[str, Tensor]:
        out, _ = self.parts["attention"](x, x, x, key_padding_mask=padding)
        return {"out": self.classify(out)}


class Pointwise(Net):
    """Treats everything one by one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(x)


class Loss(Pointwise):
    """Says one number."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return nn.functional.cross_entropy(self.classify(x), y)


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize(
    ("model", "rest", "axis"),
    [
        (Recurrent(True), (), 0),
        (Recurrent(False), (), 1),
        (Attention(True), (), 0),
        (Attention(False), (), 1),
        (Pointwise(4), (), 0),
    ],
)
def test_the_axis_of_the_batch(
    model: nn.Module, rest: tuple[Any, ...], axis: int, length: int
) -> None:
    shape = [5, length, 4] if axis else [length, 5, 4]

    assert trace(model, (torch.zeros(shape), *rest)).batch_axis == axis


def test_other_tensors_go_with_the_first() -> None:
    state = torch.zeros(1, 2, 5)  # layers, batch, units
    assert trace(Recurrent(False), (torch.zeros(3, 2, 4), state)).batch_axis == 1
    assert trace(Recurrent(True), (torch.zeros(2, 3, 4), state)).batch_axis == 0

    padding = torch.zeros(2, 5, dtype=torch.bool)  # batch, time
    example = {"x": torch.zeros(5, 2, 4), "padding": padding}
    assert trace(Attention(False), example).batch_axis == 1


def test_what_shows_no_batch_is_said() -> None:
    example = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)

    with pytest.warns(AutoFlipWarning, match="axis 0 of the first tensor"):
        assert trace(Loss(4), example).batch_axis == 0


def test_the_axis_travels_with_the_layout_unless_it_is_the_first() -> None:
    layouts = [trace(Recurrent(f), torch.zeros(2, 3, 4)) for f in (True, False)]

    assert [decode_layout(encode_layout(x)).batch_axis for x in layouts] == [0, 1]
    assert layout_digest(layouts[0]) != layout_digest(layouts[1])


@pytest.mark.parametrize("axis", [-1, 99, 0.5, "0", None])
def test_an_axis_that_none_has_is_refused(axis: Any) -> None:
    text = zlib.decompress(encode_layout(trace(Pointwise(4), torch.zeros(1, 4))))
    body = {**json.loads(text), "batch_axis": axis}

    with pytest.raises(WireError):
        decode_layout(zlib.compress(json.dumps(body).encode()))


@pytest.mark.parametrize(
    ("example", "args", "kwargs"),
    [
        (1, (1,), {}),
        ((1, {"x": 2}), (1, {"x": 2}), {}),
        ({"x": 1}, (), {"x": 1}),
        (UserDict(x=1), (), {"x": 1}),
        ([1, 2], ([1, 2],), {}),
    ],
)
def test_examples_become_arguments(example: Any, args: Any, kwargs: Any) -> None:
    assert arguments(example) == (args, kwargs)


def test_batches_by_hand() -> None:
    x = torch.zeros(5, 16, 3)

    assert batch_size((x,), {}) == 5
    assert batch_size((0.5, torch.tensor(1), [x]), {}, 1) == 16
    assert batch_size((), {"text": "a", "batch": UserDict(x=x)}) == 5
    assert batch_size((torch.zeros(5),), {}, 1) is None
    packed = pack_padded_sequence(x, torch.arange(16) % 5 + 1, enforce_sorted=False)
    assert batch_size((packed,), {}) == 16
    parts = [torch.zeros(n, 3) for n in (2, 4, 1)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    assert batch_size((nested,), {}) == 3
