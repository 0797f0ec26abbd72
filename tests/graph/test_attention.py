"""Attention that loses whole heads: the layer itself and models that hold it."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conformance import check_model, check_outputs, check_training, masked_twin
from models import Net
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_autoflip import Layout, Plan, shrink, trace
from flwr_autoflip.graph.attention import HeadPrunedAttention
from flwr_autoflip.graph.codec import layout_digest
from flwr_autoflip.graph.plan import dense_plan

Inputs = tuple[Tensor, ...]


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Draw a float64 tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# --- The layer itself: width 12, 4 heads of 3, 3 queries, 5 keys, 2 examples ---

MASKS = ("no mask", "padding", "bool", "float", "both", "causal", "causal and padding")
PADDING = torch.tensor([[False] * 5, [False, True, False, True, True]])


def masks(kind: str, length: int, padding: Tensor) -> dict[str, Any]:
    """Give arguments of the layer: masks of ``(length, keys)`` and of ``padding``."""
    given: dict[str, Any] = {}
    if "padding" in kind or kind == "both":
        given["key_padding_mask"] = padding
    if kind == "float":
        given["attn_mask"] = draw(length, padding.shape[1], seed=7)
    elif kind not in ("no mask", "padding"):
        given["attn_mask"] = torch.ones(length, padding.shape[1], dtype=bool).triu(1)
        given["is_causal"] = "causal" in kind
    return given


def layers(**options: Any) -> tuple[nn.MultiheadAttention, HeadPrunedAttention]:
    """Build torch's layer, biases other than 0, and ours as shrinking makes it."""
    layer = nn.MultiheadAttention(12, 4, **options).double()
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=index) / 2)
    ours = copy.deepcopy(layer)
    ours.__class__ = HeadPrunedAttention
    return layer, ours


def query_key_value(batch_first: bool = True) -> list[Tensor]:
    """Draw inputs of a cross-attention."""
    drawn = [draw(2, n, 12, seed=n + i) for i, n in enumerate((3, 5, 5))]
    return drawn if batch_first else [x.transpose(0, 1) for x in drawn]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("batch_first", "bias", "average", "weights"),
    [
        (True, True, True, True),
        (True, True, True, False),
        (True, False, False, True),
        (False, True, False, True),
        (False, False, True, False),
    ],
)
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_with_all_heads_it_is_torchs_layer(
    mask: str,
    batched: bool,
    batch_first: bool,
    bias: bool,
    average: bool,
    weights: bool,
    training: bool,
) -> None:
    both = layers(batch_first=batch_first, bias=bias)
    given = masks(mask, 3, PADDING)
    inputs = query_key_value(batch_first)
    if not batched:
        inputs = [x.select(0 if batch_first else 1, 1) for x in inputs]
        given |= {"key_padding_mask": PADDING[1]} if "key_padding_mask" in given else {}
    given |= {"need_weights": weights, "average_attn_weights": average}

    expected, got = (layer.train(training)(*inputs, **given) for layer in both)

    assert (got[1] is not None) == weights
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


def test_dropout_is_drawn_in_training_only() -> None:
    _, layer = layers(batch_first=True, dropout=0.5)
    inputs = query_key_value()

    for need_weights in (True, False):
        call = partial(layer, *inputs, need_weights=need_weights)
        layer.eval()
        torch.testing.assert_close(call()[0], call()[0], rtol=0, atol=0)
        layer.train()
        assert (call()[0] - call()[0]).abs().max() > 1e-3


def test_mask_a_head_is_refused() -> None:
    _, layer = layers(batch_first=True)

    with pytest.raises(ValueError, match="mask a head"):
        layer(*query_key_value(), attn_mask=torch.zeros(2 * 4, 3, 5))


# --- The layer among others ---


def attend(mask: str = "no mask", weights: bool = True, **options: Any) -> nn.Module:
    """Dense features, attention, linear; input (length, 12) and, if cross, another."""

    def call(net: Any, query: Tensor, memory: Tensor | None = None) -> Tensor:
        key = query if memory is None else memory
        padding = PADDING[1:, : key.shape[1]].expand(len(key), -1)
        given = masks(mask, query.shape[1], padding)
        if mask == "float":
            given["attn_mask"] = given["attn_mask"].to(query.dtype)
        inputs = [query, key, key]
        if not net.attn.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        out, _ = net.attn(*inputs, need_weights=weights, **given)
        return net.fc((out if net.attn.batch_first else out.transpose(0, 1)).mean(1))

    return Net(call, attn=nn.MultiheadAttention(12, 4, **options), fc=nn.Linear(12, 3))


def between_linears() -> nn.Module:
    """What goes in and comes out of the attention is prunable too; input (5, 3)."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = net.up(x)
        return net.fc(net.attn(x, x, x, need_weights=False)[0].mean(1))

    attn = nn.MultiheadAttention(12, 4, batch_first=True)
    return Net(call, up=nn.Linear(3, 12), attn=attn, fc=nn.Linear(12, 3))


def encoder(norm_first: bool = False, batch_first: bool = True) -> nn.Module:
    """Two encoder layers as torch writes them; input (5, 4)."""

    def call(net: Any, x: Tensor, padding: Tensor | None = None) -> Tensor:
        x = net.up(x if batch_first else x.transpose(0, 1))
        x = net.encoder(x, src_key_padding_mask=padding)
        return net.fc(x[:, 0] if batch_first else x[0])

    options = {"dropout": 0.0, "batch_first": batch_first, "norm_first": norm_first}
    layer = nn.TransformerEncoderLayer(12, 4, 20, **options)
    nested = batch_first and not norm_first
    both = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
    return Net(call, up=nn.Linear(4, 12), encoder=both, fc=nn.Linear(12, 3))


def encoder_layer() -> nn.Module:
    """One encoder layer, its dense features around it; input (5, 12)."""
    options = {"dropout": 0.0, "activation": "gelu", "batch_first": True}
    layer = nn.TransformerEncoderLayer(12, 4, 20, **options)
    return Net(lambda m, x: m.fc(m.layer(x).mean(1)), layer=layer, fc=nn.Linear(12, 3))


def decoder() -> nn.Module:
    """Self- and cross-attention in one layer; input (3, 12) and (5, 12)."""

    def call(net: Any, x: Tensor, memory: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(3, dtype=x.dtype)
        out = net.layer(x, memory, tgt_mask=causal, tgt_is_causal=True)
        return net.fc(out.mean(1))

    layer = nn.TransformerDecoderLayer(12, 4, 20, dropout=0.0, batch_first=True)
    return Net(call, layer=layer, fc=nn.Linear(12, 3))


def own_attention() -> nn.Module:
    """Attention as people write it, its number of heads left open; input (5, 12)."""

    def call(net: Any, x: Tensor) -> Tensor:
        q, k, v = (
            linear(x).view(x.shape[0], x.shape[1], -1, 3).transpose(1, 2)
            for linear in net.qkv
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return net.fc(F.relu(net.out(y)).mean(1))

    qkv = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
    return Net(call, qkv=qkv, out=nn.Linear(12, 12), fc=nn.Linear(12, 3))


def vision_transformer() -> nn.Module:
    """Build torchvision's ViT, small; input (3, 32, 32)."""
    models = pytest.importorskip("torchvision.models")
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4}
    vit: nn.Module = models.VisionTransformer(
        **sizes, hidden_dim=32, mlp_dim=64, num_classes=10
    )
    return vit


def other_tensors(**options: Any) -> nn.Module:
    """Attention whose layer has other tensors than usual; input (3, 12), (5, width)."""

    def call(net: Any, query: Tensor, memory: Tensor) -> Tensor:
        out, _ = net.attn(query, memory, memory)
        return net.fc2(F.relu(net.fc1(out.mean(1))))

    attn = nn.MultiheadAttention(12, 4, batch_first=True, **options)
    return Net(call, attn=attn, fc1=nn.Linear(12, 6), fc2=nn.Linear(6, 3))


def weights_out() -> nn.Module:
    """Attention weights leave the model: their mean is over all heads."""

    def call(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        out, weights = net.attn(x, x, x)
        return net.fc(out.mean(1)), weights

    attn = nn.MultiheadAttention(12, 4, batch_first=True)
    return Net(call, attn=attn, fc=nn.Linear(12, 3))


def unbatched() -> nn.Module:
    """One sequence without a batch; input (12,), the batch being the time."""
    attn = nn.MultiheadAttention(12, 4)
    return Net(lambda m, x: m.fc(m.attn(x, x, x)[0]), attn=attn, fc=nn.Linear(12, 3))


SELF, CROSS = (draw(4, 3, 12),), (draw(4, 3, 12), draw(4, 5, 12, seed=1))
TEXT, IMAGES = (draw(4, 5, 4),), (draw(4, 3, 32, 32),)
PADDED = (*TEXT, torch.arange(5) >= torch.tensor([[3], [5], [2], [4]]))
HEADS = {"attn": 4, "attn.out_proj": 12}
PARTS = {
    f"{i}.{part}": n for i in (0, 1) for part, n in (("self_attn", 4), ("linear1", 20))
}
LAYERS = {f"encoder.layers.{name}": size for name, size in PARTS.items()}

Scores = list[tuple[int, int]] | None
"""Queries and keys of every attention of a model: their scores cost MACs, too."""

# Model, batch, groups, scores, what is warned of.
CASES: dict[str, tuple[Any, Inputs, dict[str, int] | None, Scores, str]] = {
    f"{'cross' if inputs is CROSS else 'self'}, {mask}, {note}": (
        partial(attend, mask, **{"batch_first": True, **options}),
        *(inputs, HEADS, [(3, inputs[-1].shape[1])], ""),
    )
    for inputs, mask, note, options in (
        (SELF, "no mask", "weights", {}),
        (SELF, "float", "no weights", {"weights": False}),
        (SELF, "causal", "time first", {"weights": False, "batch_first": False}),
        (SELF, "no mask", "no bias", {"bias": False}),
        (CROSS, "no mask", "time first", {"batch_first": False}),
        (CROSS, "padding", "weights", {}),
        (CROSS, "bool", "no weights", {"weights": False}),
        (CROSS, "float", "no bias", {"batch_first": False, "bias": False}),
        (CROSS, "both", "weights", {}),
        (CROSS, "causal and padding", "no weights", {"weights": False}),
    )
}
CASES |= {
    "between linears": (
        between_linears, (draw(4, 5, 3),), {"up": 12, **HEADS}, [(5, 5)], ""
    ),
    "encoder": (encoder, TEXT, LAYERS, [(5, 5)] * 2, ""),
    "encoder, padded": (encoder, PADDED, LAYERS, None, ""),
    "encoder, norm first": (partial(encoder, True), TEXT, LAYERS, [(5, 5)] * 2, ""),
    "encoder, time first": (
        partial(encoder, batch_first=False), TEXT, LAYERS, [(5, 5)] * 2, ""
    ),
    "encoder layer": (encoder_layer, SELF, None, [(3, 3)], ""),
    "decoder": (decoder, CROSS, None, [(3, 3), (3, 5)], ""),
    "own attention": (
        own_attention, (draw(4, 5, 12),), {"qkv.0": 4, "out": 12}, None, ""
    ),
    "vision transformer": (vision_transformer, IMAGES, None, [(17, 17)] * 2, ""),
    "weights out": (
        weights_out, SELF, {"attn.out_proj": 12}, [(3, 3)], "'attn' stays dense"
    ),
    "unbatched": (unbatched, (draw(4, 12),), HEADS, None, "axis 0"),
}  # fmt: skip
CASES |= {
    name: (
        partial(other_tensors, **options),
        (draw(4, 3, 12), draw(4, 5, options.get("kdim", 12))),
        *({"fc1": 6}, None, ""),
    )
    for name, options in (
        ("other widths", {"kdim": 8, "vdim": 8}),
        ("an extra key", {"add_bias_kv": True}),
        ("an extra zero", {"add_zero_attn": True}),
    )
}

nested_is_new = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors:UserWarning"
)


@nested_is_new
@pytest.mark.parametrize("name", CASES)
def test_a_model_keeps_all_promises(name: str) -> None:
    model_fn, inputs, groups, scores, warns = CASES[name]

    def unseen(small: nn.Module) -> int:
        """Count the MACs of scores, and of what they weigh, in a small model."""
        found = [m for m in small.modules() if isinstance(m, nn.MultiheadAttention)]
        return sum(
            2 * queries * keys * layer.out_proj.in_features
            for (queries, keys), layer in zip(scores or (), found, strict=True)
        )

    floats = tuple(x.float() if x.is_floating_point() else x for x in inputs)
    macs = None if scores is None else unseen
    check_model(model_fn, floats, groups, warns=warns, unseen_macs=macs)


def traced(name: str) -> tuple[nn.Module, Inputs, Layout]:
    """Build a case in float64, with the same weights every time, and trace it."""
    model_fn, inputs, *_ = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_fn().double()
    return model, inputs, trace(model, tuple(x[:1] for x in inputs))


def test_macs_of_projections() -> None:
    _, _, layout = traced("cross, no mask, time first")

    plan = Plan(layout, {"attn": np.array([1, 3]), "attn.out_proj": np.arange(12)})

    # Rows of query (3 tokens), key and value (5): 6 of 12 -> 6; 3 tokens 6 -> 12; fc.
    assert plan.macs == (3 + 5 + 5) * 12 * 6 + 3 * 6 * 12 + 12 * 3


def test_a_layer_that_lost_heads() -> None:
    model, _, layout = traced("self, no mask, weights")
    plan = Plan(layout, {"attn": np.array([0, 2]), "attn.out_proj": np.arange(12)})

    small = shrink(model, plan)

    # Heads of 3: head 2 is places 6 to 8 of the query, the key and the value.
    heads = np.array([0, 1, 2, 6, 7, 8])
    rows = np.concatenate([heads, heads + 12, heads + 24])
    np.testing.assert_equal(list(plan.index["attn.in_proj_weight"]), [rows, None])
    np.testing.assert_equal(list(plan.index["attn.in_proj_bias"]), [rows])
    np.testing.assert_equal(list(plan.index["attn.out_proj.weight"]), [None, heads])
    assert type(small.attn) is HeadPrunedAttention
    assert isinstance(small.attn, nn.MultiheadAttention)
    assert (small.attn.num_heads, small.attn.head_dim) == (2, 3)
    assert list(small.state_dict()) == list(model.state_dict())
    for whole in (model, shrink(model, dense_plan(layout))):
        assert type(whole.attn) is nn.MultiheadAttention


def test_fused_and_unfused_encoders_have_one_layout() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    digests = set()
    for enabled in (True, False):
        torch.backends.mha.set_fastpath_enabled(enabled)
        try:
            digests.add(layout_digest(traced("encoder")[2]))
        finally:
            torch.backends.mha.set_fastpath_enabled(before)

    assert len(digests) == 1


@pytest.mark.parametrize("heads", [[0, 3], [0, 1, 2, 3]], ids=["some", "all"])
def test_heads_and_what_they_read_go_apart(heads: list[int]) -> None:
    model, inputs, layout = traced("between linears")
    keep = {"up": [1, 2, 5, 7, 11], "attn": heads, "attn.out_proj": range(0, 12, 2)}
    plan = Plan(layout, {name: np.array(units) for name, units in keep.items()})

    assert check_outputs(model, plan, inputs)
    check_training(model, plan, inputs)


@nested_is_new
@pytest.mark.parametrize("layer", [0, 1])
def test_padded_encoder_of_which_one_layer_lost_heads(layer: int) -> None:
    model, inputs, layout = traced("encoder, padded")
    name = f"encoder.layers.{layer}.self_attn"
    keep = {**dense_plan(layout).keep, name: np.array([0, 2])}

    assert check_outputs(model, Plan(layout, keep), inputs)


def test_order_of_keyword_arguments_does_not_matter() -> None:
    def call(net: Any, query: Tensor, memory: Tensor) -> Tensor:
        given = {"value": memory, "key": memory, "query": query}
        return net.fc(net.attn(**given)[0].mean(1))

    usual = attend(batch_first=True)
    other = Net(call, attn=usual.attn, fc=usual.fc)
    example = tuple(x[:1].float() for x in CROSS)

    one, two = (trace(model, example) for model in (usual, other))

    assert layout_digest(one) == layout_digest(two)


def test_masked_twin_is_fused_where_the_small_model_is_not() -> None:
    """The comparison above is one of two implementations, or it shows little."""
    model, inputs, layout = traced("encoder layer")
    heads, inner = np.array([0, 3]), np.arange(20)
    plan = Plan(layout, {"layer.self_attn": heads, "layer.linear1": inner})
    called = []

    with torch.no_grad():
        for net in (masked_twin(model, plan).eval(), shrink(model, plan).eval()):
            kind = type(net.layer.self_attn)

            def forward(
                *args: Any, kind: Any = kind, net: Any = net, **given: Any
            ) -> Any:
                called.append(kind)
                return kind.forward(net.layer.self_attn, *args, **given)

            net.layer.self_attn.forward = forward  # a hook would forbid torch to fuse
            net(*inputs)

    assert called == [HeadPrunedAttention]
