"""Convolutions, norms, recurrent layers and whole models, traced and shrunk.

Add a layer: a model that holds it goes into ``CASES``, with the groups it should have.
"""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conformance import check_model, sizes
from models import ZOO, Net, build, layout_of
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_autoflip import Plan, UnsupportedLayerError, shrink, trace
from flwr_autoflip.graph.shrink import register_resize
from flwr_autoflip.graph.tracing import modules as layer_rules
from flwr_autoflip.graph.tracing.modules import LayerCall, layer_rule
from flwr_autoflip.graph.tracing.propagate import Flow

TOKENS = torch.arange(20).reshape(4, 5) % 9


def draw(*shape: int) -> Tensor:
    """Draw a batch."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def recurrent(kind: Any, use: str = "outputs", **options: Any) -> nn.Module:
    """Embedding, one recurrent module, two linear layers; input: integers."""
    cells = kind(4, 6, **options)
    time = 1 if cells.batch_first else 0

    def call(net: Any, x: Tensor) -> Tensor:
        x = net.embed(x)
        outputs, state = net.cells(x if time else x.transpose(0, 1))
        state = state[0] if isinstance(state, tuple) else state
        found = {
            "outputs": lambda: outputs.select(time, -1),
            "last state": lambda: state[-1],
            "both states": lambda: torch.cat([state[-2], state[-1]], 1),
            "mean": lambda: outputs.mean(time),
        }[use]()
        return net.fc2(F.gelu(net.fc1(found)))

    width = cells.proj_size or 6
    width *= 2 if cells.bidirectional and use != "last state" else 1
    return text_net(call, cells, width)


def text_net(call: Any, cells: nn.Module, width: int = 6) -> nn.Module:
    """Put recurrent cells of 4 inputs between an embedding and two linear layers."""
    embed, fc1, fc2 = nn.Embedding(9, 4), nn.Linear(width, 5), nn.Linear(5, 3)
    return Net(call, embed=embed, cells=cells, fc1=fc1, fc2=fc2)


def with_state(fixed: bool) -> nn.Module:
    """An initial state of a fixed size, or one made like the input."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = net.embed(x)
        zeros = x.new_zeros(1, len(x), 6 if fixed else net.cells.hidden_size)
        outputs, _ = net.cells(x, (zeros, zeros))
        return net.fc2(F.gelu(net.fc1(outputs[:, -1])))

    return text_net(call, nn.LSTM(4, 6, batch_first=True))


def packed() -> nn.Module:
    """Sequences of their own lengths, as clients with text have them."""

    def call(net: Any, x: Tensor) -> Tensor:
        lengths = torch.full((len(x),), 4)
        x = nn.utils.rnn.pack_padded_sequence(net.embed(x), lengths, batch_first=True)
        _, (last, _) = net.cells(x)
        return net.fc2(F.gelu(net.fc1(last[-1])))

    return text_net(call, nn.LSTM(4, 6, batch_first=True))


def two_lstms(hand_over: bool) -> nn.Module:
    """Two modules of one layer each; the second may start from the first's state."""

    def call(net: Any, x: Tensor) -> Tensor:
        x, state = net.one(net.embed(x))
        x, _ = net.two(x, state) if hand_over else net.two(x)
        return net.fc(x[:, -1])

    one, two = (nn.LSTM(n, 6, batch_first=True) for n in (4, 6))
    return Net(call, embed=nn.Embedding(9, 4), one=one, two=two, fc=nn.Linear(6, 3))


def convnext_block() -> nn.Module:
    """Depthwise, LayerNorm over channels, 4 times wider and back; input (2, 6, 6)."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = net.norm(net.deep(x).permute(0, 2, 3, 1))
        y = net.scale * net.narrow(F.gelu(net.wide(y)))
        return net.fc((x + y.permute(0, 3, 1, 2)).mean((2, 3)))

    stem, deep = (nn.Conv2d(n, 4, 3, padding=1, groups=g) for n, g in ((2, 1), (4, 4)))
    block = {"norm": nn.LayerNorm(4), "wide": nn.Linear(4, 16)}
    block |= {"narrow": nn.Linear(16, 4), "scale": nn.Parameter(torch.rand(4))}
    return Net(call, stem=stem, deep=deep, **block, fc=nn.Linear(4, 3))


def group_norm(groups: int, affine: bool = True) -> nn.Module:
    """Convolution, GroupNorm, convolution; input (2, 6, 6)."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = F.relu(net.inner(F.relu(net.norm(net.conv(x)))))
        return net.fc(x.mean((2, 3)))

    conv, inner = nn.Conv2d(2, 12, 3, bias=False), nn.Conv2d(12, 5, 3)
    norm = nn.GroupNorm(groups, 12, affine=affine)
    return Net(call, conv=conv, norm=norm, inner=inner, fc=nn.Linear(5, 3))


def tied_text() -> nn.Module:
    """A language model whose decoder is its embedding; input: integers."""

    def call(net: Any, x: Tensor) -> Tensor:
        return net.decode(net.back(F.relu(net.hidden(net.embed(x)))))

    embed, decode = nn.Embedding(9, 6), nn.Linear(6, 9)
    decode.weight = embed.weight
    inner = {"hidden": nn.Linear(6, 8), "back": nn.Linear(8, 6)}
    return Net(call, embed=embed, **inner, decode=decode)


ZOO_GROUPS = {
    "conv_flat": {"conv1": 4, "conv2": 6, "fc1": 8},
    "batch_norm": {"conv": 5, "fc1": 7},
    "depthwise": {"up": 6, "down": 4},
    # Channel i of `up` makes channels 2i and 2i + 1 of `deep`.
    "depthwise_times_2": {"up": 6, "down": 4},
    # 12 channels in 3 groups of 4 places, 6 made in 3 groups of 2 places.
    "grouped": {"up": 4, "middle": 2},
    # stem = conv2 (identity sum), conv3 = project (projected sum).
    "residual": {"stem": 6, "conv1": 4, "conv3": 8},
    "dense_block": {"stem": 4, "conv1": 3, "conv2": 3},
    "concat_residual_flatten": {"left": 4, "right": 3, "fc1": 6},
    "squeeze_excite": {"conv": 6, "squeeze": 4},
    "conv1d": {"conv1": 5, "conv2": 4},
    "conv3d": {"conv1": 5, "conv2": 4},
    "pooling": {"conv1": 5, "conv2": 4},
    "branches": {"inner.0": 4, "last": 5},
    "sequential": {"0": 5, "5": 6},
    "raw_parameters": {"w1": 6},
    "raw_block": {"block": 6},
}

TEXT = {"embed": 4, "cells": 6, "fc1": 5}
IMAGES = draw(4, 2, 6, 6)
DENSE_CELLS = {"embed": 4, "fc1": 5}
IGNORED: dict[str, Any] = {"ignored_layers": ("embed", "cells"), "unseen_macs": None}

# Model, batch, groups, further arguments of check_model.
CASES: dict[str, tuple[Any, Tensor, dict[str, int], dict[str, Any]]] = {
    name: (partial(build, name), draw(4, *shape), ZOO_GROUPS[name], {})
    for name, (_, shape) in ZOO.items()
}
CASES |= {
    f"{kind.__name__} {depth}{' both ways' if two else ''} {use}": (
        partial(recurrent, kind, use, num_layers=depth, bidirectional=two, **options),
        *(TOKENS, TEXT, {}),
    )
    for kind in (nn.LSTM, nn.GRU, nn.RNN)
    for depth, two, use, options in (
        (1, False, "outputs", {"batch_first": True}),
        (1, True, "both states", {"batch_first": True}),
        (2, False, "last state", {}),
        (2, True, "last state", {"batch_first": True}),
        (3, False, "mean", {"batch_first": True, "bias": False}),
        (3, True, "outputs", {}),
    )
}
CASES |= {
    "two LSTMs": (
        partial(two_lstms, False), TOKENS, {"embed": 4, "one": 6, "two": 6}, {}
    ),
    "two LSTMs, state handed over": (
        partial(two_lstms, True), TOKENS, {"embed": 4, "one": 6}, {}
    ),
    "LSTM with a projection": (
        partial(recurrent, nn.LSTM, batch_first=True, proj_size=2),
        TOKENS, {"fc1": 5}, {"unseen_macs": None},
    ),
    "LSTM with a fixed state": (partial(with_state, True), TOKENS, DENSE_CELLS, {}),
    "LSTM with a state": (partial(with_state, False), TOKENS, DENSE_CELLS, {}),
    "packed LSTM": (packed, TOKENS, {"fc1": 5}, IGNORED),
    # The residual sum ties `stem` and `narrow` to what the norm reads.
    "ConvNeXt block": (convnext_block, IMAGES, {"wide": 16}, {}),
    "GroupNorm 1": (partial(group_norm, 1), IMAGES, {"inner": 5}, {}),
    "GroupNorm 2": (partial(group_norm, 2), IMAGES, {"conv": 2, "inner": 5}, {}),
    "GroupNorm 3": (partial(group_norm, 3), IMAGES, {"conv": 3, "inner": 5}, {}),
    "GroupNorm 12": (partial(group_norm, 12), IMAGES, {"conv": 12, "inner": 5}, {}),
    "GroupNorm without weights": (
        partial(group_norm, 3, affine=False), IMAGES, {"inner": 5},
        {"warns": "'conv' stays dense"},
    ),
    "tied weights": (tied_text, TOKENS, {"hidden": 8}, {"ignored_layers": ("decode",)}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_a_model_keeps_all_promises(name: str) -> None:
    model_fn, inputs, groups, options = CASES[name]

    check_model(model_fn, inputs, groups, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("resnet18", 0.01),
        ("resnet50", 0.01),
        ("mobilenet_v3_small", 0.01),
        # Four values a channel make gradients so large that big steps end in chaos.
        ("efficientnet_b3", 1e-6),
    ],
)
def test_a_model_of_torchvision_keeps_all_promises(name: str, rate: float) -> None:
    models = pytest.importorskip("torchvision.models")

    def model_fn() -> nn.Module:
        model: nn.Module = getattr(models, name)(num_classes=10)
        return model

    layout = check_model(model_fn, draw(4, 3, 32, 32), rate=rate, seeds=(4,))

    assert not layout.fixed - {"classifier.3.weight", "classifier.3.bias"}


# --- Index maps, sizes and costs, by hand ---


@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
def test_index_map_of_a_tiny_lstm(both: bool) -> None:
    lstm = nn.LSTM(2, 3, 2, batch_first=True, bidirectional=both)
    fc = nn.Linear(6 if both else 3, 2)
    model = Net(lambda net, x: net.fc(net.lstm(x)[0][:, -1]), lstm=lstm, fc=fc)
    layout = trace(model, torch.zeros(1, 5, 2))

    plan = Plan(layout, {"lstm": np.array([0, 2])})

    assert sizes(layout) == {"lstm": 3}
    # Rows 0-2 input gate, 3-5 forget gate, 6-8 cell, 9-11 output gate.
    gates = [0, 2, 3, 5, 6, 8, 9, 11]
    features = [0, 2, 3, 5] if both else [0, 2]
    for end in ("", "_reverse") if both else ("",):
        for layer, columns in ((0, None), (1, features)):
            for name, expected in (
                (f"weight_ih_l{layer}{end}", [gates, columns]),
                (f"weight_hh_l{layer}{end}", [gates, [0, 2]]),
                (f"bias_ih_l{layer}{end}", [gates]),
                (f"bias_hh_l{layer}{end}", [gates]),
            ):
                np.testing.assert_equal(list(plan.index[f"lstm.{name}"]), expected)
    np.testing.assert_equal(list(plan.index["fc.weight"]), [None, features])


@pytest.mark.parametrize(
    ("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)], ids=lambda x: str(x)
)
def test_size_and_macs_of_a_recurrent_layer(kind: Any, gates: int) -> None:
    model = recurrent(kind, batch_first=True)
    keep = {"embed": [0, 3], "cells": [1, 2, 5], "fc1": [0, 1, 2, 4]}
    units = {name: np.array(kept) for name, kept in keep.items()}

    plan = Plan(trace(model, TOKENS[:1]), units)
    small = shrink(model, plan)

    # Five steps of gates x 3 rows from 2 features and 3 hidden units; 3 -> 4 -> 3.
    assert plan.macs == 5 * gates * 3 * (2 + 3) + 3 * 4 + 4 * 3
    assert (small.cells.input_size, small.cells.hidden_size) == (2, 3)
    assert small.cells.all_weights[0][0].shape == (gates * 3, 2)
    small(TOKENS).sum().backward()
    assert all(p.grad is not None for p in small.cells.parameters())


@pytest.mark.parametrize("groups", [2, 3, 12])
def test_channels_normalised_together_go_together(groups: int) -> None:
    layout = trace(group_norm(groups), IMAGES[:1])

    plan = Plan(layout, {"conv": np.array([1]), "inner": np.arange(5)})
    small = shrink(group_norm(groups), plan)

    together = 12 // groups
    (rows,) = plan.index["norm.weight"]
    np.testing.assert_array_equal(rows, np.arange(together, 2 * together))
    assert (small.norm.num_groups, small.norm.num_channels) == (1, together)
    assert layout.by_name["conv.weight"].normalized


def test_size_attributes_of_convolutions_and_norms() -> None:
    keep = {"up": np.array([1, 4]), "down": np.array([0, 2, 3])}
    depthwise = shrink(
        build("depthwise_times_2"), Plan(layout_of("depthwise_times_2"), keep)
    )
    keep = {"up": np.array([0, 3]), "middle": np.array([1])}
    grouped = shrink(build("grouped"), Plan(layout_of("grouped"), keep))

    # 2 channels in the middle, each making 2: 2 -> 2 (depthwise) -> 4 -> 3 -> 3.
    assert (depthwise.up.in_channels, depthwise.up.out_channels) == (2, 2)
    assert (depthwise.deep.in_channels, depthwise.deep.out_channels) == (2, 4)
    assert depthwise.deep.groups == 2
    assert (depthwise.down.in_channels, depthwise.down.out_channels) == (4, 3)
    assert (depthwise.fc.in_features, depthwise.fc.out_features) == (3, 3)
    # Three groups of 2 places: 6 channels in, 3 out, still three groups.
    assert grouped.norm.num_features == 6
    assert (grouped.middle.in_channels, grouped.middle.out_channels) == (6, 3)
    assert grouped.middle.groups == 3


# --- A layer type of one's own ---


class FourierFilter(nn.Module):
    """Mixes features, then filters each over time; (batch, time, features)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.outside = outside
        self.mix = nn.Parameter(torch.randn(outside, inside))
        self.gain = nn.Parameter(torch.rand(outside))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x @ self.mix.T, dim=1)
        spectrum = spectrum * self.gain.view(1, 1, self.outside)
        return torch.fft.irfft(spectrum, n=x.shape[1], dim=1)


class Child(FourierFilter):
    """A subclass, which may do anything."""


def filter_net(kind: type[FourierFilter] = FourierFilter) -> nn.Sequential:
    """Build linear, filter, ReLU, linear; input (6, 2)."""
    return nn.Sequential(
        *(nn.Linear(2, 4), kind(4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(30, 3))
    )


@pytest.fixture
def _taught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teach the package the layer, for the time of one test."""
    from flwr_autoflip.graph.shrink import _RESIZERS

    monkeypatch.setitem(layer_rules.LAYER_RULES, FourierFilter, None)
    monkeypatch.setitem(_RESIZERS, FourierFilter, None)

    @layer_rule(FourierFilter)
    def follow(call: LayerCall) -> list[Flow]:
        units = call.tensors["gain"].axes[0]
        batch_axis, time_axis, features = call.inputs[0].axes
        call.consume("mix", 1, features, macs=len(batch_axis) * len(time_axis))
        call.units.couple(call.tensors["mix"].axes[0], units)
        return [Flow([batch_axis, time_axis, units])]

    @register_resize(FourierFilter)
    def resize(layer: Any) -> None:
        layer.outside = len(layer.gain)


def test_layer_without_a_rule_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"1 \(FourierFilter\): _fft"):
        trace(filter_net(), torch.zeros(1, 6, 2))


@pytest.mark.usefixtures("_taught")
def test_layer_of_ones_own_is_traced_and_shrunk() -> None:
    layout = check_model(filter_net, draw(4, 6, 2), {"0": 4, "1": 5})
    plan = Plan(layout, {"0": np.array([0, 3]), "1": np.array([1, 2, 4])})

    # Flatten puts time first: unit 1 owns columns 1, 6, 11 and so on.
    expected = (5 * np.arange(6)[:, None] + [1, 2, 4]).ravel()
    np.testing.assert_array_equal(plan.index["4.weight"][1], expected)
    # Six steps of 2 -> 2 and 2 -> 3, then 18 -> 3.
    assert plan.macs == 6 * (2 * 2 + 2 * 3) + 18 * 3


@pytest.mark.usefixtures("_taught")
def test_a_subclass_needs_a_rule_but_no_resizer_of_its_own() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"1 \(Child\)"):
        trace(filter_net(Child), torch.zeros(1, 6, 2))

    layer_rule(Child)(layer_rules.LAYER_RULES[FourierFilter])
    try:
        layout = trace(filter_net(Child), torch.zeros(1, 6, 2))
    finally:
        del layer_rules.LAYER_RULES[Child]
    plan = Plan(layout, {"0": np.array([0]), "1": np.array([1, 2])})
    assert shrink(filter_net(Child), plan)[1].outside == 2
