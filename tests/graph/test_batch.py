"""Which axis is the batch, and what a batch is."""

from collections import UserDict
from typing import Any

import pytest
import torch
from models import Net
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from flwr_autoflip import AutoFlipWarning, trace
from flwr_autoflip.graph.batch import arguments, batch_size


def classifier(width: int, part: Any, call: Any) -> nn.Module:
    """A part whose batch is to be found, and a hidden layer behind what it gives."""

    def classify(net: Any, *inputs: Any, **given: Any) -> Any:
        out = call(net.part, *inputs, **given)
        return net.head(torch.tanh(net.hidden(out)))

    return Net(classify, part=part, hidden=nn.Linear(width, 6), head=nn.Linear(6, 3))


def recurrent(first: bool) -> nn.Module:
    gru = nn.GRU(4, 5, batch_first=first)
    return classifier(5, gru, lambda gru, x, h=None: gru(x, h)[0])


def attention(first: bool) -> nn.Module:
    def call(attend: Any, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return attend(x, x, x, key_padding_mask=padding)[0]

    return classifier(4, nn.MultiheadAttention(4, 2, batch_first=first), call)


def pointwise() -> nn.Module:
    """Treats everything one by one."""
    return classifier(4, None, lambda _, x: x)


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize(
    ("model", "axis"),
    [
        (recurrent(True), 0),
        (recurrent(False), 1),
        (attention(True), 0),
        (attention(False), 1),
        (pointwise(), 0),
    ],
)
def test_the_axis_of_the_batch(model: nn.Module, axis: int, length: int) -> None:
    shape = [5, length, 4] if axis else [length, 5, 4]

    assert trace(model, torch.zeros(shape)).batch_axis == axis


def test_other_tensors_go_with_the_first() -> None:
    state = torch.zeros(1, 2, 5)  # layers, batch, units
    assert trace(recurrent(False), (torch.zeros(3, 2, 4), state)).batch_axis == 1
    assert trace(recurrent(True), (torch.zeros(2, 3, 4), state)).batch_axis == 0

    padding = torch.zeros(2, 5, dtype=torch.bool)  # batch, time
    example = {"x": torch.zeros(5, 2, 4), "padding": padding}
    assert trace(attention(False), example).batch_axis == 1


def test_what_shows_no_batch_is_said() -> None:
    model = pointwise()
    loss = Net(lambda net, x, y: F.cross_entropy(net.model(x), y), model=model)
    example = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)

    with pytest.warns(AutoFlipWarning, match="axis 0 of the first tensor"):
        assert trace(loss, example).batch_axis == 0


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
