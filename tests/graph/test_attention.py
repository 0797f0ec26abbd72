"""Attention that loses whole heads: the layer itself and models that hold it."""

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
    masked_twin,
    random_arrays,
    random_plan,
)
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_autoflip.errors import AutoFlipWarning
from flwr_autoflip.graph.attention import HeadPrunedAttention
from flwr_autoflip.graph.codec import layout_digest
from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.pack import expand, pack
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.shrink import shrink
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.ledger.cost import count_macs

SEEDS = st.integers(0, 2**32 - 1)
Inputs = tuple[Tensor, ...]


def sizes(layout: Layout) -> dict[str, int]:
    """Give group name -> number of units."""
    return {group.name: group.size for group in layout.groups}


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Draw a float64 tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# --- The layer itself: width 12, 4 heads of 3, 3 queries, 5 keys, 2 examples ---

LENGTHS = (3, 5)
PADDING = torch.tensor([[False] * 5, [False, True, False, True, True]])
CAUSAL = torch.ones(LENGTHS, dtype=torch.bool).triu(1)

MASKS: dict[str, dict[str, Any]] = {
    "no mask": {},
    "padding": {"key_padding_mask": PADDING},
    "bool": {"attn_mask": CAUSAL},
    "float": {"attn_mask": draw(*LENGTHS, seed=7)},
    "both": {"attn_mask": CAUSAL, "key_padding_mask": PADDING},
    "causal": {"attn_mask": CAUSAL, "is_causal": True},
    "causal and padding": {
        "attn_mask": CAUSAL,
        "is_causal": True,
        "key_padding_mask": PADDING,
    },
}


def attention(**options: Any) -> nn.MultiheadAttention:
    """Build the dense layer in float64, biases other than 0."""
    layer = nn.MultiheadAttention(12, 4, **options).double()
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=index) / 2)
    return layer


def all_heads(layer: nn.MultiheadAttention) -> HeadPrunedAttention:
    """Swap the class, as shrinking does."""
    twin = copy.deepcopy(layer)
    twin.__class__ = HeadPrunedAttention
    return twin


def query_key_value(batch_first: bool) -> list[Tensor]:
    """Draw inputs of a cross-attention."""
    drawn = [draw(2, n, 12, seed=n + i) for i, n in enumerate((3, 5, 5))]
    return drawn if batch_first else [x.transpose(0, 1) for x in drawn]


def assert_same_results(
    one: nn.Module, other: nn.Module, *args: Any, **kw: Any
) -> None:
    """Compare outputs and, where there are any, attention weights."""
    expected, expected_weights = one(*args, **kw)
    got, weights = other(*args, **kw)

    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)
    assert (weights is None) == (expected_weights is None)
    if weights is not None:
        torch.testing.assert_close(weights, expected_weights, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_with_all_heads_it_is_torchs_layer(
    mask: str, need_weights: bool, batch_first: bool, bias: bool, training: bool
) -> None:
    layer = attention(batch_first=batch_first, bias=bias).train(training)
    given = {**MASKS[mask], "need_weights": need_weights}

    assert_same_results(layer, all_heads(layer), *query_key_value(batch_first), **given)


@pytest.mark.parametrize("mask", MASKS)
def test_weights_of_every_head_are_torchs(mask: str) -> None:
    layer = attention(batch_first=True)
    given = {**MASKS[mask], "average_attn_weights": False}

    _, weights = all_heads(layer)(*query_key_value(True), **given)

    assert weights.shape == (2, 4, 3, 5)
    assert_same_results(layer, all_heads(layer), *query_key_value(True), **given)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_unbatched_input_is_as_torchs(
    padded: bool, average: bool, need_weights: bool
) -> None:
    layer = attention(batch_first=True)
    inputs = [x[1] for x in query_key_value(True)]
    mask = {"key_padding_mask": PADDING[1]} if padded else {"attn_mask": CAUSAL}
    given = {**mask, "need_weights": need_weights, "average_attn_weights": average}

    assert_same_results(layer, all_heads(layer), *inputs, **given)


def test_dropout_is_drawn_in_training_only() -> None:
    layer = all_heads(attention(batch_first=True, dropout=0.5))
    inputs = query_key_value(True)

    for need_weights in (True, False):
        layer.eval()
        still = [layer(*inputs, need_weights=need_weights)[0] for _ in range(2)]
        layer.train()
        moving = [layer(*inputs, need_weights=need_weights)[0] for _ in range(2)]

        torch.testing.assert_close(still[0], still[1], rtol=0, atol=0)
        assert (moving[0] - moving[1]).abs().max() > 1e-3


def test_mask_a_head_is_refused() -> None:
    layer = all_heads(attention(batch_first=True))
    a_head = torch.zeros(2 * 4, *LENGTHS, dtype=torch.float64)

    with pytest.raises(ValueError, match="mask a head"):
        layer(*query_key_value(True), attn_mask=a_head)


# --- The layer among others ---


class Attend(nn.Module):
    """Dense features, attention, linear; input (length, 12) and, if cross, another."""

    def __init__(
        self,
        need_weights: bool = True,
        mask: str = "no mask",
        average: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        self.given = dict(need_weights=need_weights, average_attn_weights=average)
        self.mask = mask
        self.attn = nn.MultiheadAttention(12, 4, **options)
        self.fc = nn.Linear(12, 3)

    def forward(self, query: Tensor, memory: Tensor | None = None) -> Tensor:
        key = query if memory is None else memory
        masks = {
            name: mask.to(query.device) if isinstance(mask, Tensor) else mask
            for name, mask in MASKS[self.mask].items()
        }
        if memory is None:
            masks = {k: m[:, :3] if k == "attn_mask" else m for k, m in masks.items()}
        if "key_padding_mask" in masks:
            masks["key_padding_mask"] = masks["key_padding_mask"][0, : key.shape[1]]
            masks["key_padding_mask"] = masks["key_padding_mask"].expand(len(key), -1)
        if "attn_mask" in masks and masks["attn_mask"].dtype != torch.bool:
            masks["attn_mask"] = masks["attn_mask"].to(query.dtype)
        inputs = [query, key, key]
        if not self.attn.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        out, _ = self.attn(*inputs, **masks, **self.given)
        out = out if self.attn.batch_first else out.transpose(0, 1)
        return self.fc(out.mean(1))


class Unbatched(nn.Module):
    """One sequence without a batch; input (12,), the batch being the time."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(12, 4)
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.attn(x, x, x)[0])


class BetweenLinears(nn.Module):
    """What goes in and comes out of the attention is prunable too; input (5, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 12)
        self.attn = nn.MultiheadAttention(12, 4, batch_first=True)
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.fc(self.attn(x, x, x, need_weights=False)[0].mean(1))


class Encoder(nn.Module):
    """Two encoder layers as torch writes them; input (5, 4)."""

    def __init__(self, norm_first: bool, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.up = nn.Linear(4, 12)
        layer = nn.TransformerEncoderLayer(
            12, 4, 20, dropout=0.0, batch_first=batch_first, norm_first=norm_first
        )
        nested = batch_first and not norm_first
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.up(x if self.batch_first else x.transpose(0, 1))
        x = self.encoder(x, src_key_padding_mask=padding)
        return self.fc(x[:, 0] if self.batch_first else x[0])


class EncoderLayer(nn.Module):
    """One encoder layer, its dense features around it; input (5, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            12, 4, 20, dropout=0.0, activation="gelu", batch_first=True
        )
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(x).mean(1))


class Decoder(nn.Module):
    """Self- and cross-attention in one layer; input (3, 12) and (5, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(
            12, 4, 20, dropout=0.0, batch_first=True
        )
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(3, dtype=x.dtype)
        return self.fc(
            self.layer(x, memory, tgt_mask=causal, tgt_is_causal=True).mean(1)
        )


class OwnAttention(nn.Module):
    """Attention as people write it, its number of heads left open; input (5, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.out = nn.Linear(12, 12)
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            linear(x).view(x.shape[0], x.shape[1], -1, 3).transpose(1, 2)
            for linear in self.qkv
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.fc(F.relu(self.out(y)).mean(1))


def vision_transformer() -> nn.Module:
    """Build torchvision's ViT, small; input (3, 32, 32)."""
    models = pytest.importorskip("torchvision.models")
    vit = models.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        mlp_dim=64,
        num_classes=10,
    )
    nn.init.normal_(vit.heads.head.weight)  # torchvision's zeros would hide faults
    return vit


SELF, CROSS = (draw(4, 3, 12),), (draw(4, 3, 12), draw(4, 5, 12, seed=1))
TEXT = draw(4, 5, 4)
PADDED = torch.arange(5) >= torch.tensor([[3], [5], [2], [4]])

CASES: dict[str, tuple[Any, Inputs]] = {
    f"{'cross' if inputs is CROSS else 'self'}, {mask}{', ' * bool(note)}{note}": (
        lambda mask=mask, options=options: Attend(mask=mask, **options),
        inputs,
    )
    for inputs, mask, note, options in (
        (SELF, "no mask", "", {"batch_first": True}),
        (SELF, "float", "no weights", {"batch_first": True, "need_weights": False}),
        (SELF, "causal", "time first", {"need_weights": False}),
        (SELF, "no mask", "no bias", {"bias": False, "batch_first": True}),
        (CROSS, "no mask", "time first", {}),
        (CROSS, "padding", "", {"batch_first": True}),
        (CROSS, "bool", "no weights", {"batch_first": True, "need_weights": False}),
        (CROSS, "float", "time first", {"bias": False}),
        (CROSS, "both", "weights a head", {"batch_first": True, "average": False}),
        (CROSS, "causal and padding", "", {"batch_first": True, "need_weights": False}),
    )
}
CASES |= {
    "unbatched": (Unbatched, (draw(4, 12),)),
    "encoder": (lambda: Encoder(norm_first=False), (TEXT,)),
    "encoder, padded": (lambda: Encoder(norm_first=False), (TEXT, PADDED)),
    "encoder, norm first": (lambda: Encoder(norm_first=True), (TEXT,)),
    "encoder, time first": (lambda: Encoder(False, batch_first=False), (TEXT,)),
    "encoder layer": (EncoderLayer, SELF),
    "decoder": (Decoder, CROSS),
    "own attention": (OwnAttention, (draw(4, 5, 12),)),
    "vision transformer": (vision_transformer, (draw(4, 3, 32, 32),)),
}


def built(name: str) -> tuple[nn.Module, Inputs]:
    """Build a case in float64, with the same weights every time."""
    factory, inputs = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return factory().double(), inputs


@lru_cache
def layout_of_case(name: str) -> Layout:
    """Trace a case, once; no group may turn out not to shrink."""
    model, inputs = built(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
        if name == "unbatched":  # said, as it should be
            warnings.filterwarnings("ignore", "examples are counted along axis 0")
        return trace(model, tuple(x[:1] for x in inputs))


nested_is_new = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors:UserWarning"
)


@nested_is_new
@pytest.mark.parametrize("name", CASES)
def test_small_model_computes_what_the_masked_one_does(name: str) -> None:
    model, inputs = built(name)

    for seed in range(3):
        plan = random_plan(layout_of_case(name), seed)
        assert_same_outputs(model, plan, inputs)


@nested_is_new
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
        kept = plan.dense_mask(spec.name)
        # The model is float64, values travel as float32.
        np.testing.assert_array_equal(
            full[spec.name][kept], np.float32(arrays[spec.name][kept])
        )
        np.testing.assert_array_equal(full[spec.name][~kept], base[spec.name][~kept])


# --- Costs and sizes, by hand ---


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("self, no mask", [(3, 3)]),
        ("self, float, no weights", [(3, 3)]),
        ("self, causal, time first", [(3, 3)]),
        ("cross, no mask, time first", [(3, 5)]),
        ("encoder", [(5, 5), (5, 5)]),
        ("decoder", [(3, 3), (3, 5)]),
        ("vision transformer", [(17, 17), (17, 17)]),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_what_the_plans_macs_leave_out(
    name: str, lengths: list[tuple[int, int]], seed: int
) -> None:
    model, inputs = built(name)
    plan = random_plan(layout_of_case(name), seed)

    small = shrink(model, plan)

    layers = [m for m in small.modules() if isinstance(m, nn.MultiheadAttention)]
    inner = [layer.out_proj.in_features for layer in layers]
    scores = sum(
        2 * queries * keys * width
        for (queries, keys), width in zip(lengths, inner, strict=True)
    )
    counted = count_macs(small, tuple(x[:1] for x in inputs))
    assert counted - plan.macs == pytest.approx(scores, abs=1e-6, rel=0)


def test_macs_of_projections() -> None:
    layout = layout_of_case("cross, no mask, time first")

    plan = Plan(layout, {"attn": np.array([1, 3]), "attn.out_proj": np.arange(12)})

    # Rows of query (3 tokens), key and value (5): 6 of 12 -> 6; 3 tokens 6 -> 12; fc.
    assert sizes(layout) == {"attn": 4, "attn.out_proj": 12}
    assert plan.macs == (3 + 5 + 5) * 12 * 6 + 3 * 6 * 12 + 12 * 3


def test_index_map_of_heads() -> None:
    layout = layout_of_case("self, no mask")

    plan = Plan(layout, {"attn": np.array([0, 2]), "attn.out_proj": np.arange(12)})

    # Heads of 3: head 2 is places 6 to 8 of the query, the key and the value.
    heads = np.array([0, 1, 2, 6, 7, 8])
    rows, columns = plan.index["attn.in_proj_weight"]
    np.testing.assert_array_equal(rows, [*heads, *(heads + 12), *(heads + 24)])
    assert columns is None
    np.testing.assert_array_equal(plan.index["attn.in_proj_bias"][0], rows)
    rows, columns = plan.index["attn.out_proj.weight"]
    assert rows is None
    np.testing.assert_array_equal(columns, heads)


def test_layer_that_lost_heads_keeps_its_tensors_names() -> None:
    model, _ = built("self, no mask")
    layout = layout_of_case("self, no mask")
    plan = Plan(layout, {"attn": np.array([0, 2]), "attn.out_proj": np.arange(12)})

    small = shrink(model, plan)

    assert type(small.attn) is HeadPrunedAttention
    assert isinstance(small.attn, nn.MultiheadAttention)
    assert (small.attn.num_heads, small.attn.head_dim) == (2, 3)
    assert list(small.state_dict()) == list(model.state_dict())
    assert type(model.attn) is nn.MultiheadAttention


def test_layer_that_keeps_its_heads_is_torchs() -> None:
    model, _ = built("encoder layer")

    small = shrink(model, dense_plan(layout_of_case("encoder layer")))

    assert type(small.layer.self_attn) is nn.MultiheadAttention


def test_model_that_lost_heads_can_be_copied() -> None:
    model, inputs = built("encoder layer")
    small = shrink(model, random_plan(layout_of_case("encoder layer"), 0)).eval()

    twin = copy.deepcopy(small)

    torch.testing.assert_close(twin(*inputs), small(*inputs), rtol=0, atol=0)


def test_heads_and_feed_forward_of_encoders_are_units() -> None:
    assert sizes(layout_of_case("encoder")) == {
        "encoder.layers.0.self_attn": 4,
        "encoder.layers.0.linear1": 20,
        "encoder.layers.1.self_attn": 4,
        "encoder.layers.1.linear1": 20,
    }


def test_heads_of_ones_own_attention_are_units() -> None:
    assert sizes(layout_of_case("own attention")) == {"qkv.0": 4, "out": 12}


def test_fused_and_unfused_encoders_have_one_layout() -> None:
    model, inputs = built("encoder")
    before = torch.backends.mha.get_fastpath_enabled()
    digests = []
    for enabled in (True, False):
        torch.backends.mha.set_fastpath_enabled(enabled)
        try:
            digests.append(layout_digest(trace(model, tuple(x[:1] for x in inputs))))
        finally:
            torch.backends.mha.set_fastpath_enabled(before)

    assert digests[0] == digests[1]


# --- What goes in and out of the attention is prunable too ---


def between_linears(heads: list[int], features: list[int]) -> tuple[nn.Module, Plan]:
    """Give the model and a plan with these heads and input features."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BetweenLinears().double()
    layout = trace(model, draw(1, 5, 3))
    keep = {"up": features, "attn": heads, "attn.out_proj": list(range(0, 12, 2))}
    return model, Plan(layout, {name: np.array(units) for name, units in keep.items()})


def test_heads_and_features_go_apart() -> None:
    model, plan = between_linears([0, 3], [1, 2, 5, 7, 11])

    assert_same_outputs(model, plan, (draw(4, 5, 3),))
    assert_same_training(model, plan, (draw(4, 5, 3),))


def test_features_go_where_all_heads_stay() -> None:
    model, plan = between_linears([0, 1, 2, 3], [1, 2, 5, 7, 11])

    assert_same_outputs(model, plan, (draw(4, 5, 3),))
    assert_same_training(model, plan, (draw(4, 5, 3),))


@nested_is_new
@pytest.mark.parametrize("layer", [0, 1])
def test_padded_encoder_of_which_one_layer_lost_heads(layer: int) -> None:
    model, inputs = built("encoder, padded")
    layout = layout_of_case("encoder, padded")
    name = f"encoder.layers.{layer}.self_attn"
    keep = {**dense_plan(layout).keep, name: np.array([0, 2])}

    assert_same_outputs(model, Plan(layout, keep), inputs)


def test_order_of_keyword_arguments_does_not_matter() -> None:
    class Attending(Attend):
        def __init__(self, in_order: bool) -> None:
            super().__init__(batch_first=True)
            self.in_order = in_order

        def forward(self, query: Tensor, memory: Tensor) -> Tensor:
            given = {"query": query, "key": memory, "value": memory}
            if not self.in_order:
                given = dict(reversed(given.items()))
            return self.fc(self.attn(**given)[0].mean(1))

    example = tuple(x[:1].float() for x in CROSS)

    one, other = (trace(Attending(in_order), example) for in_order in (True, False))

    assert dense_plan(one).macs == dense_plan(other).macs


# --- What cannot be pruned ---


class WeightsOut(Attend):
    """Attention weights leave the model: their mean is over all heads."""

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor]:
        out, weights = self.attn(query, query, query)
        return self.fc(out.mean(1)), weights


def test_heads_whose_weights_come_out_stay() -> None:
    with pytest.warns(AutoFlipWarning, match="'attn' stays dense"):
        layout = trace(WeightsOut(batch_first=True), SELF[0][:1].float())

    assert sizes(layout) == {"attn.out_proj": 12}


@pytest.mark.parametrize(
    "options",
    [{"kdim": 8, "vdim": 8}, {"add_bias_kv": True}, {"add_zero_attn": True}],
    ids=["other widths", "extra key", "extra zero"],
)
def test_layers_with_other_tensors_stay_dense(options: dict[str, Any]) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(12, 4, batch_first=True, **options)
            self.fc1 = nn.Linear(12, 6)
            self.fc2 = nn.Linear(6, 3)

        def forward(self, query: Tensor, memory: Tensor) -> Tensor:
            out, _ = self.attn(query, memory, memory)
            return self.fc2(F.relu(self.fc1(out.mean(1))))

    width = options.get("kdim", 12)
    inputs = draw(4, 3, 12), draw(4, 5, width)
    model = Wide().double()

    layout = trace(model, tuple(x[:1] for x in inputs))
    plan = random_plan(layout, 1)

    assert sizes(layout) == {"fc1": 6}
    assert_same_outputs(model, plan, inputs)


def test_masked_twin_is_fused_where_the_small_model_is_not() -> None:
    """The comparison above is one of two implementations, or it shows little."""
    model, inputs = built("encoder layer")
    layout = layout_of_case("encoder layer")
    heads, inner = np.array([0, 3]), np.arange(20)
    plan = Plan(layout, {"layer.self_attn": heads, "layer.linear1": inner})
    called = []

    with torch.no_grad():
        for net in (masked_twin(model, plan).eval(), shrink(model, plan).eval()):
            attend = net.layer.self_attn
            attend.forward = lambda *args, attend=attend, **given: (
                called.append(type(attend))
                or type(attend).forward(attend, *args, **given)
            )
            net(*inputs)

    assert called == [HeadPrunedAttention]
