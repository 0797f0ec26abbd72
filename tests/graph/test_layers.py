"""Recurrent layers, normalisation and layer types of one's own, traced and shrunk."""

import copy
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    assert_same_outputs,
    assert_same_training,
    random_arrays,
    random_plan,
)
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_autoflip.errors import AutoFlipWarning, UnsupportedLayerError
from flwr_autoflip.graph import shrink as shrinking
from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.pack import expand, pack
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import register_resize, shrink
from flwr_autoflip.graph.tracing import modules as layer_rules
from flwr_autoflip.graph.tracing.modules import LayerCall, layer_rule
from flwr_autoflip.graph.tracing.propagate import Flow
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.graph.tracing.verify import answering_groups
from flwr_autoflip.ledger.cost import count_macs

TOKENS = torch.arange(20).reshape(4, 5) % 9
SEEDS = st.integers(0, 2**32 - 1)
Inputs = tuple[Tensor, ...]


def sizes(layout: Layout) -> dict[str, int]:
    """Give group name -> number of units."""
    return {group.name: group.size for group in layout.groups}


# --- Models ---


class Recurrent(nn.Module):
    """Embedding, one recurrent module, two linear layers; input: integers."""

    def __init__(self, kind: Any, use: str = "outputs", **options: Any) -> None:
        super().__init__()
        self.use = use
        self.embed = nn.Embedding(9, 4)
        self.cells = kind(4, 6, **options)
        both = self.cells.bidirectional and use != "last state"
        width = self.cells.proj_size or 6
        self.fc1 = nn.Linear(2 * width if both else width, 5)
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        time = 1 if self.cells.batch_first else 0
        outputs, state = self.cells(x if time else x.transpose(0, 1))
        state = state[0] if isinstance(state, tuple) else state
        if self.use == "last state":
            found = state[-1]
        elif self.use == "both states":
            found = torch.cat([state[-2], state[-1]], 1)
        elif self.use == "mean":
            found = outputs.mean(time)
        else:
            found = outputs.select(time, -1)
        return self.fc2(F.gelu(self.fc1(found)))


class ZeroState(Recurrent):
    """An initial state whose size is written into ``forward``."""

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(1, len(x), 6, dtype=self.fc1.weight.dtype)
        outputs, _ = self.cells(self.embed(x), (zeros, zeros))
        return self.fc2(F.gelu(self.fc1(outputs[:, -1])))


class TwoLstms(nn.Module):
    """Two modules of one layer each; the second may start from the first's state."""

    def __init__(self, hand_over: bool) -> None:
        super().__init__()
        self.hand_over = hand_over
        self.embed = nn.Embedding(9, 4)
        self.one = nn.LSTM(4, 6, batch_first=True)
        self.two = nn.LSTM(6, 6, batch_first=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, state = self.one(self.embed(x))
        x, _ = self.two(x, state) if self.hand_over else self.two(x)
        return self.fc(x[:, -1])


class ConvNextBlock(nn.Module):
    """Depthwise, LayerNorm over channels, 4 times wider and back; input (2, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.deep = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.LayerNorm(4)
        self.wide = nn.Linear(4, 16)
        self.narrow = nn.Linear(16, 4)
        self.scale = nn.Parameter(torch.rand(4))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.deep(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.wide(y)))
        return self.fc((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


class GroupNormNet(nn.Module):
    """Convolution, GroupNorm, convolution; input (2, 6, 6)."""

    def __init__(self, groups: int, affine: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 12, 3, bias=False)
        self.norm = nn.GroupNorm(groups, 12, affine=affine)
        self.inner = nn.Conv2d(12, 5, 3)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner(F.relu(self.norm(self.conv(x)))))
        return self.fc(x.mean((2, 3)))


IMAGES = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))

CASES: dict[str, tuple[Any, Inputs]] = {
    f"{kind.__name__} {depth}{' both ways' if two else ''} {use}": (
        lambda kind=kind, depth=depth, two=two, use=use, first=first, bias=bias: (
            Recurrent(
                kind,
                use,
                num_layers=depth,
                bidirectional=two,
                batch_first=first,
                bias=bias,
            )
        ),
        (TOKENS,),
    )
    for kind in (nn.LSTM, nn.GRU, nn.RNN)
    for depth, two, use, first, bias in (
        (1, False, "outputs", True, True),
        (1, True, "both states", True, True),
        (2, False, "last state", False, True),
        (2, True, "mean", True, False),
        (3, False, "mean", True, False),
        (3, True, "outputs", False, True),
    )
}
CASES |= {
    "LSTM one direction's state of two": (
        lambda: Recurrent(nn.LSTM, "last state", bidirectional=True),
        (TOKENS,),
    ),
    "two LSTMs": (lambda: TwoLstms(False), (TOKENS,)),
    "two LSTMs, state handed over": (lambda: TwoLstms(True), (TOKENS,)),
    "ConvNeXt block": (ConvNextBlock, (IMAGES,)),
    **{
        f"GroupNorm {groups}": (lambda g=groups: GroupNormNet(g), (IMAGES,))
        for groups in (1, 2, 3, 6, 12)
    },
}


def built(name: str) -> tuple[nn.Module, Inputs]:
    """Build a case in float64, with the same weights every time."""
    factory, inputs = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = factory().double()
    return model, tuple(x.double() if x.is_floating_point() else x for x in inputs)


@lru_cache
def layout_of_case(name: str) -> Layout:
    """Trace a case, once; no group may turn out not to shrink."""
    model, _ = built(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return trace(model.float(), tuple(x[:1] for x in CASES[name][1]))


# --- Equivalence, case by case ---


@pytest.mark.parametrize("name", CASES)
def test_small_model_computes_what_the_masked_one_does(name: str) -> None:
    model, inputs = built(name)

    for seed in range(3):
        plan = random_plan(layout_of_case(name), seed)
        assert_same_outputs(model, plan, inputs)


@pytest.mark.parametrize("name", CASES)
def test_three_steps_move_kept_coordinates_as_in_the_masked_model(name: str) -> None:
    model, inputs = built(name)
    plan = random_plan(layout_of_case(name), seed=1)

    assert plan.num_parameters < plan.layout.num_parameters
    assert_same_training(model, plan, inputs)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_expand_is_arrays_on_kept_coordinates_and_base_elsewhere(
    name: str, seed: int
) -> None:
    plan = random_plan(layout_of_case(name), seed)
    arrays, base = (random_arrays(plan.layout, s) for s in (seed, seed + 1))

    full = expand(base, pack(arrays, plan), plan)

    for spec in plan.layout.tensors:
        expected = np.where(
            plan.dense_mask(spec.name), arrays[spec.name], base[spec.name]
        )
        np.testing.assert_array_equal(full[spec.name], expected, err_msg=spec.name)


@pytest.mark.parametrize("name", CASES)
def test_one_gradient_tells_what_three_steps_do(name: str) -> None:
    model, inputs = built(name)
    layout = layout_of_case(name)
    plan = Plan(layout, {g.name: np.arange(g.size // 2, g.size) for g in layout.groups})
    kept = {t.name: torch.as_tensor(plan.dense_mask(t.name)) for t in layout.tensors}
    masked = copy.deepcopy(model)
    masked.load_state_dict({n: v * kept[n] for n, v in model.state_dict().items()})
    optimizer = torch.optim.SGD(masked.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (masked(*inputs) ** 2).mean().backward()
        optimizer.step()

    moved = any(bool((p[~kept[n]] != 0).any()) for n, p in masked.named_parameters())

    assert moved == bool(answering_groups(model, inputs, layout))


@pytest.mark.parametrize("name", CASES)
def test_plan_foretells_the_macs_of_the_small_model(name: str) -> None:
    model, inputs = built(name)
    plan = random_plan(layout_of_case(name), seed=1)

    small = shrink(model, plan)

    assert plan.macs == pytest.approx(count_macs(small, inputs), abs=1e-6, rel=0)


# --- Recurrent layers, by hand ---


class TinyLstm(nn.Module):
    """Two layers of hidden size 3, both ways if asked for; input (5, 2)."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, 2, batch_first=True, bidirectional=both)
        self.fc = nn.Linear(6 if both else 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0][:, -1])


@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
def test_index_map_of_a_tiny_lstm(both: bool) -> None:
    layout = trace(TinyLstm(both), torch.zeros(1, 5, 2))

    plan = Plan(layout, {"lstm": np.array([0, 2])})

    assert sizes(layout) == {"lstm": 3}
    # Rows 0-2 input gate, 3-5 forget gate, 6-8 cell, 9-11 output gate.
    gates = [0, 2, 3, 5, 6, 8, 9, 11]
    layer_2_features = [0, 2, 3, 5] if both else [0, 2]
    for end in ("", "_reverse") if both else ("",):
        for layer, features in ((0, None), (1, layer_2_features)):
            rows, columns = plan.index[f"lstm.weight_ih_l{layer}{end}"]
            np.testing.assert_array_equal(rows, gates)
            if features is None:
                assert columns is None
            else:
                np.testing.assert_array_equal(columns, features)
            rows, columns = plan.index[f"lstm.weight_hh_l{layer}{end}"]
            np.testing.assert_array_equal(rows, gates)
            np.testing.assert_array_equal(columns, [0, 2])
            for kind in ("bias_ih", "bias_hh"):
                (rows,) = plan.index[f"lstm.{kind}_l{layer}{end}"]
                np.testing.assert_array_equal(rows, gates)
    rows, columns = plan.index["fc.weight"]
    assert rows is None
    np.testing.assert_array_equal(columns, layer_2_features)


@pytest.mark.parametrize(
    ("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)], ids=lambda x: str(x)
)
def test_macs_of_a_recurrent_layer(kind: Any, gates: int) -> None:
    layout = trace(Recurrent(kind, batch_first=True), TOKENS[:1])
    keep = {"embed": [0, 3], "cells": [1, 2, 5], "fc1": [0, 1, 2, 4]}

    plan = Plan(layout, {name: np.array(units) for name, units in keep.items()})

    # Five steps of gates x 3 rows from 2 features and 3 hidden units; 3 -> 4 -> 3.
    assert plan.macs == 5 * gates * 3 * (2 + 3) + 3 * 4 + 4 * 3


def test_size_attributes_of_a_recurrent_layer() -> None:
    layout = trace(Recurrent(nn.GRU, num_layers=2), TOKENS[:1])
    keep = {"embed": [0, 3], "cells": [1, 2, 5], "fc1": [0]}
    plan = Plan(layout, {name: np.array(units) for name, units in keep.items()})

    small = shrink(Recurrent(nn.GRU, num_layers=2), plan)

    assert (small.cells.input_size, small.cells.hidden_size) == (2, 3)
    assert small.cells.all_weights[1][0].shape == (9, 3)
    small(TOKENS).sum().backward()
    assert all(p.grad is not None for p in small.cells.parameters())


def test_two_modules_are_pruned_apart() -> None:
    assert sizes(layout_of_case("two LSTMs")) == {"embed": 4, "one": 6, "two": 6}


def test_modules_that_share_a_state_go_together() -> None:
    layout = layout_of_case("two LSTMs, state handed over")

    assert sizes(layout) == {"embed": 4, "one": 6}
    np.testing.assert_array_equal(
        layout.by_name["two.weight_hh_l0"].owners[1],
        layout.by_name["one.weight_hh_l0"].owners[1],
    )


def test_layers_of_one_module_are_one_group() -> None:
    layout = layout_of_case("LSTM 3 both ways outputs")

    assert sizes(layout) == {"embed": 4, "cells": 6, "fc1": 5}


def test_lstm_with_a_fixed_state_stays_dense() -> None:
    layout = trace(ZeroState(nn.LSTM, batch_first=True), TOKENS[:1])

    assert sizes(layout) == {"embed": 4, "fc1": 5}


def test_lstm_with_a_fixed_state_works() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AutoFlipWarning)
        model = ZeroState(nn.LSTM, batch_first=True)
        layout = trace(model, TOKENS[:1])
    model = model.double()

    plan = random_plan(layout, seed=0)

    assert "cells" not in sizes(layout)
    assert_same_outputs(model, plan, (TOKENS,))
    assert_same_training(model, plan, (TOKENS,))


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_lstm_with_a_projection_stays_dense() -> None:
    model = Recurrent(nn.LSTM, batch_first=True, proj_size=2)

    layout = trace(model, TOKENS[:1])
    plan = random_plan(layout, seed=0)

    assert sizes(layout) == {"fc1": 5}
    assert shrink(model, plan).cells.hidden_size == 6
    assert_same_outputs(model.double(), plan, (TOKENS,))
    assert_same_training(model, plan, (TOKENS,))


class PackedNet(Recurrent):
    """Sequences of their own lengths, as clients with text have them."""

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(x), torch.full((len(x),), 4), batch_first=True
        )
        _, (last, _) = self.cells(packed)
        return self.fc2(F.gelu(self.fc1(last[-1])))


def test_packed_sequences_work_once_the_lstm_is_excluded() -> None:
    model = PackedNet(nn.LSTM, batch_first=True)

    layout = trace(model, TOKENS[:1], ignored_layers=("embed", "cells"))

    assert sizes(layout) == {"fc1": 5}


class StateOfItsInput(Recurrent):
    """An initial state made like the input."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        zeros = x.new_zeros(1, len(x), self.cells.hidden_size)
        outputs, _ = self.cells(x, (zeros, zeros))
        return self.fc2(F.gelu(self.fc1(outputs[:, -1])))


def test_new_zeros_of_prunable_units_can_be_followed() -> None:
    model = StateOfItsInput(nn.LSTM, batch_first=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AutoFlipWarning)
        layout = trace(model, TOKENS[:1])

    assert sizes(layout)["fc1"] == 5


# --- Normalisation, by hand ---


@pytest.mark.parametrize("groups", [2, 3, 6, 12])
def test_channels_normalised_together_go_together(groups: int) -> None:
    layout = layout_of_case(f"GroupNorm {groups}")

    plan = Plan(layout, {"conv": np.array([1]), "inner": np.arange(5)})
    small = shrink(GroupNormNet(groups), plan)

    assert sizes(layout) == {"conv": groups, "inner": 5}
    together = 12 // groups
    (rows,) = plan.index["norm.weight"]
    np.testing.assert_array_equal(rows, np.arange(together, 2 * together))
    assert (small.norm.num_groups, small.norm.num_channels) == (1, together)
    assert layout.by_name["conv.weight"].normalized


def test_one_norm_over_all_channels_keeps_them() -> None:
    assert sizes(layout_of_case("GroupNorm 1")) == {"inner": 5}


@pytest.mark.parametrize("groups", [3, 12])
def test_group_norm_without_weights_stays_dense(groups: int) -> None:
    model = GroupNormNet(groups, affine=False)

    with pytest.warns(AutoFlipWarning, match="'conv' stays dense"):
        layout = trace(model, IMAGES[:1])
    plan = random_plan(layout, seed=0)

    assert sizes(layout) == {"inner": 5}
    assert shrink(model, plan).norm.num_groups == groups
    assert_same_outputs(model.double(), plan, (IMAGES.double(),))


def test_layer_norm_keeps_its_features_and_frees_the_rest() -> None:
    layout = layout_of_case("ConvNeXt block")

    # The residual sum ties `stem` and `narrow` to what the norm reads.
    assert sizes(layout) == {"wide": 16}
    assert layout.by_name["norm.weight"].owners == (None,)


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


def filter_net() -> nn.Sequential:
    """Build linear, filter, ReLU, linear; input (6, 2)."""
    return nn.Sequential(
        nn.Linear(2, 4),
        FourierFilter(4, 5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(30, 3),
    )


@pytest.fixture
def _own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    rules, resizers = dict(layer_rules.LAYER_RULES), dict(shrinking._RESIZERS)
    monkeypatch.setattr(layer_rules, "LAYER_RULES", rules)
    monkeypatch.setattr("flwr_autoflip.graph.tracing.trace.LAYER_RULES", rules)
    monkeypatch.setattr(shrinking, "_RESIZERS", resizers)


def test_layer_without_a_rule_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"1 \(FourierFilter\): _fft"):
        trace(filter_net(), torch.zeros(1, 6, 2))


@pytest.mark.usefixtures("_own_registries")
def test_layer_of_ones_own_is_traced_and_shrunk() -> None:
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

    model, x = filter_net(), torch.randn(4, 6, 2, dtype=torch.float64)
    layout = trace(model, torch.zeros(1, 6, 2))
    plan = Plan(layout, {"0": np.array([0, 3]), "1": np.array([1, 2, 4])})

    assert sizes(layout) == {"0": 4, "1": 5}
    # Flatten puts time first: unit 1 owns columns 1, 6, 11 and so on.
    expected = (5 * np.arange(6)[:, None] + [1, 2, 4]).ravel()
    np.testing.assert_array_equal(plan.index["4.weight"][1], expected)
    assert shrink(model, plan)[1].outside == 3
    # Six steps of 2 -> 2 and 2 -> 3, then 18 -> 3.
    assert plan.macs == 6 * (2 * 2 + 2 * 3) + 18 * 3
    assert_same_outputs(model.double(), plan, (x,))
    assert_same_training(model, plan, (x,))


@pytest.mark.usefixtures("_own_registries")
def test_rule_is_for_its_type_and_not_for_subclasses() -> None:
    class Child(FourierFilter):
        pass

    @layer_rule(FourierFilter)
    def follow(call: LayerCall) -> list[Flow]:
        raise AssertionError("called for a subclass")

    model = nn.Sequential(nn.Linear(2, 4), Child(4, 5), nn.Linear(5, 3))

    with pytest.raises(UnsupportedLayerError, match=r"1 \(Child\)"):
        trace(model, torch.zeros(1, 6, 2))
