"""What tracing finds in a model, what it warns of and what it refuses."""

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from conformance import check_model, sizes
from models import ConvFlat, Net, batch, build, layout_of
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_autoflip import (
    AutoFlipError,
    AutoFlipWarning,
    Plan,
    UnsupportedLayerError,
    trace,
)
from flwr_autoflip.graph.codec import layout_digest
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.graph.tracing.verify import answering_groups

# --- Layouts, by hand; groups of all models are in test_layers ---


def test_layout_of_convolutions_flatten_and_linear() -> None:
    layout = layout_of("conv_flat")

    # Units 0-3 conv1, 4-9 conv2, 10-17 fc1; fc2's rows are the output: nobody's.
    assert [group.first for group in layout.groups] == [0, 4, 10]
    names = ("conv1", "conv2", "fc1", "fc2")
    conv1, conv2, fc1, fc2 = (layout.by_name[f"{name}.weight"] for name in names)
    np.testing.assert_equal(conv1.owners, (np.arange(4), None, None, None))
    np.testing.assert_equal(conv2.owners[:2], (np.arange(4, 10), np.arange(4)))
    # Flatten: each of 6 filters owns a run of 2 x 2 columns.
    columns = np.repeat(np.arange(4, 10), 4)
    np.testing.assert_equal(fc1.owners, (np.arange(10, 18), columns))
    np.testing.assert_equal(fc2.owners, (None, np.arange(10, 18)))
    assert {spec.input_axes for spec in (conv2, fc1, fc2)} == {(1,)}
    # 8 x 8 and 4 x 4 places a filter; a linear weight is used once.
    assert [s.macs_per_weight for s in (conv1, conv2, fc1, fc2)] == [64, 16, 1, 1]


# Model, tensor, axis and who owns it.
OWNERS = [
    *(("batch_norm", f"norm.{n}", 0, range(5)) for n in ("weight", "running_var")),
    ("depthwise_times_2", "deep.weight", 0, np.repeat(np.arange(6), 2)),
    ("depthwise_times_2", "deep.weight", 1, None),
    ("depthwise_times_2", "down.weight", 1, np.repeat(np.arange(6), 2)),
    ("grouped", "up.weight", 0, np.tile(np.arange(4), 3)),
    ("grouped", "middle.weight", 0, np.tile([4, 5], 3)),
    ("grouped", "middle.weight", 1, range(4)),
    # stem = conv2 (identity sum), conv3 = project (projected sum).
    ("residual", "conv2.weight", 0, range(6)),
    ("residual", "project.weight", 0, range(10, 18)),
    # stem 0-3, conv1 4-6, conv2 7-9.
    ("dense_block", "norm2.weight", 0, range(7)),
    ("dense_block", "fc.weight", 1, range(10)),
    # cat([right, left]); left 0-3 comes first in the state_dict, right 4-6.
    ("concat_residual_flatten", "mix.weight", 0, [4, 5, 6, 0, 1, 2, 3]),
    ("concat_residual_flatten", "mix.weight", 1, [4, 5, 6, 0, 1, 2, 3]),
    ("concat_residual_flatten", "fc1.weight", 1, np.repeat([4, 5, 6, 0, 1, 2, 3], 4)),
    # A gate goes with the channels it scales.
    ("squeeze_excite", "excite.weight", 0, range(6)),
    # w1 (3, 6) makes 6 units along axis 1; w2 (6, 2) takes them in along axis 0.
    ("raw_parameters", "w1", 0, None),
    ("raw_parameters", "w1", 1, range(6)),
    ("raw_parameters", "w2", 0, range(6)),
]


@pytest.mark.parametrize(("name", "tensor", "axis", "owners"), OWNERS)
def test_owners_by_hand(name: str, tensor: str, axis: int, owners: Any) -> None:
    found = layout_of(name).by_name[tensor].owners[axis]

    assert (None if found is None else found.tolist()) == (
        None if owners is None else list(owners)
    )


def test_what_stands_before_a_norm_is_normalized() -> None:
    def call(net: Any, x: Tensor) -> Tensor:
        x = net.norm(net.conv(x))
        x = F.relu(x + net.outer(F.relu(net.inner(x))))
        return net.last(F.relu(net.up(x)))

    sizes = {"conv": (1, 4), "inner": (4, 6), "outer": (6, 4)}
    convs = {name: nn.Conv2d(*n, 3, padding=1) for name, n in sizes.items()}
    ends = {"up": nn.ConvTranspose2d(4, 5, 3), "last": nn.Conv2d(5, 2, 3)}
    model = Net(call, norm=nn.BatchNorm2d(4), **convs, **ends)

    layout = trace(model, torch.zeros(1, 1, 6, 6))

    assert [t.name for t in layout.tensors if t.normalized] == ["conv.weight"]


def test_a_layer_that_forward_never_uses_stays_dense() -> None:
    model = build("conv_flat")
    model.spare = nn.Linear(3, 5)

    layout = trace(model, batch("conv_flat", 1))

    assert sizes(layout) == {"conv1": 4, "conv2": 6, "fc1": 8}
    assert layout.by_name["spare.weight"].owners == (None, None)


def test_bare_parameters_shrink_by_their_own_axis() -> None:
    layout = layout_of("raw_parameters")
    plan = Plan(layout, {layout.groups[0].name: np.array([0, 5])})

    assert layout.by_name["w1"].own_axes == (1,)
    assert layout.by_name["w2"].own_axes == ()
    assert plan.small_shape("w1") == (3, 2)
    assert plan.small_shape("w2") == (2, 2)


def test_neither_weights_nor_the_batch_matter() -> None:
    layouts = [
        trace(build("residual", seed), batch("residual", n, seed))
        for seed, n in ((0, 1), (9, 2))
    ]

    assert layout_digest(layouts[0]) == layout_digest(layouts[1])


def test_a_channels_last_model_traces_to_the_same_layout() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)),
    )
    x = torch.zeros(1, 3, 9, 9)
    expected = trace(model, x)

    last = torch.channels_last
    layout = trace(model.to(memory_format=last), x.to(memory_format=last))

    assert layout_digest(layout) == layout_digest(expected)
    assert [group.size for group in layout.groups] == [8, 4]


# --- What tracing leaves alone ---


def test_tracing_leaves_the_model_alone() -> None:
    model = build("batch_norm").train()
    before = arrays_of(model)

    trace(model, batch("batch_norm", 1))

    assert model.training
    assert model.norm.training
    assert not any(m._forward_hooks for m in model.modules())
    for name, array in arrays_of(model).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize("enabled", [True, False])
def test_tracing_leaves_torchs_fused_attention_as_it_was(enabled: bool) -> None:
    seen = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.backends.mha.get_fastpath_enabled())
            return super().forward(x)

    model = nn.Sequential(Watched(3, 4), nn.ReLU(), nn.Linear(4, 2))
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        trace(model, torch.zeros(1, 3))
        after_success = torch.backends.mha.get_fastpath_enabled()
        with pytest.raises(AutoFlipError, match="forward fails"):
            trace(model, torch.zeros(1, 4))
        after_error = torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(before)

    assert not any(seen)  # encoder layers that torch would fuse are followed
    assert after_success == after_error == enabled


@pytest.mark.filterwarnings("ignore:examples are counted along axis 0")
def test_the_callers_generator_stays_and_noise_is_drawn_alike() -> None:
    def call(net: Any, x: Tensor) -> Tensor:
        """Draw noise on the input: as many numbers, whatever is pruned."""
        x = x + torch.randn(x.shape, dtype=x.dtype)
        return net.last(torch.relu(net.first(x)))

    model = Net(call, first=nn.Linear(6, 8), last=nn.Linear(8, 2))
    before = torch.get_rng_state()

    layout = trace(model, torch.zeros(1, 6))

    assert sizes(layout) == {"first": 8}
    torch.testing.assert_close(torch.get_rng_state(), before)


# --- ignored_layers ---


@pytest.mark.parametrize(
    ("name", "ignored", "groups"),
    [
        ("conv_flat", "conv1", {"conv2": 6, "fc1": 8}),
        # The layer before an ignored one is prunable.
        ("conv_flat", "conv2", {"conv1": 4, "fc1": 8}),
        # A block, with all it holds.
        ("branches", "inner", {"last": 5}),
    ],
)
def test_ignored_layers_stay_dense(
    name: str, ignored: str, groups: dict[str, int]
) -> None:
    layout = trace(build(name), batch(name, 1), ignored_layers=(ignored,))

    assert sizes(layout) == groups


def test_layers_are_not_ignored_by_how_their_names_begin() -> None:
    layers = {"fc": nn.Linear(3, 4), "fc1": nn.Linear(4, 5), "fc2": nn.Linear(5, 2)}

    layout = trace(nn.Sequential(OrderedDict(layers)), torch.zeros(1, 3), ("fc",))

    assert sizes(layout) == {"fc1": 5}


def test_an_ignored_layer_that_is_none_is_an_error() -> None:
    with pytest.raises(AutoFlipError, match=r"ignored_layers: .* named .*conv9"):
        trace(build("conv_flat"), batch("conv_flat", 1), ignored_layers=("conv9",))


# --- What cannot be pruned, and works without ---


def chain(between: Any, width: int = 6) -> nn.Module:
    """Linear layers of 4, 6, 5 and 3 features, with something between the first two."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = net.between(F.relu(net.first(x)))
        return net.last(F.relu(net.middle(x)))

    linears = {"first": nn.Linear(4, 6), "middle": nn.Linear(width, 5)}
    return Net(call, between=between, **linears, last=nn.Linear(5, 3))


class Roll(nn.Module):
    """Nobody can tell a unit from its neighbour here."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x, 1, -1)


def hard_view() -> nn.Module:
    """The first group's size is written into ``forward``; input (1, 6, 6)."""

    def call(net: Any, x: Tensor) -> Tensor:
        return net.fc2(F.relu(net.fc1(F.relu(net.conv(x)).view(-1, 64))))

    fc1, fc2 = nn.Linear(64, 8), nn.Linear(8, 3)
    return Net(call, conv=nn.Conv2d(1, 4, 3), fc1=fc1, fc2=fc2)


# Model, batch, groups and further arguments of check_model.
X, IGNORED = torch.randn(4, 4), {"ignored_layers": ("first",)}
PARTS: dict[str, tuple[Any, Tensor, dict[str, int], dict[str, Any]]] = {
    "a size written into forward": (
        hard_view, torch.randn(4, 1, 6, 6), {"fc1": 8},
        {"warns": r"'conv' stays dense.*flatten\(1\)"},
    ),
    "sliced channels": (
        lambda: chain(lambda x: x[:, :4], 4), X, {"middle": 5},
        {"warns": "'first' stays dense"},
    ),
    "softmax": (lambda: chain(lambda x: x.softmax(1)), X, {"middle": 5}, {}),
    "roll": (lambda: chain(Roll()), X, {"middle": 5}, IGNORED),
    "fft": (lambda: chain(lambda x: torch.fft.fft(x).real), X, {"middle": 5}, IGNORED),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_what_cannot_be_pruned_stays_and_the_rest_keeps_all_promises(name: str) -> None:
    model_fn, inputs, groups, options = PARTS[name]

    check_model(model_fn, inputs, groups, **options)


@pytest.mark.filterwarnings("ignore:examples are counted along axis 0")
def test_overlapping_strides_leave_their_units_dense() -> None:
    layout = trace(
        chain(lambda x: x.as_strided((len(x), 6), (1, 1))), torch.randn(2, 4)
    )

    assert sizes(layout) == {"middle": 5}


def test_unknown_operators_are_refused_all_in_one_error() -> None:
    both = {"one": chain(Roll()), "other": chain(Roll())}
    model = Net(lambda net, x: net.one(x) + net.other(x), **both)

    with pytest.raises(UnsupportedLayerError, match="ignored_layers=") as caught:
        trace(model, torch.zeros(1, 4))

    assert "one.between (Roll): roll" in str(caught.value)
    assert "other.between (Roll): roll" in str(caught.value)


def test_warning_points_at_the_caller() -> None:
    with pytest.warns(AutoFlipWarning) as caught:
        trace(hard_view(), torch.zeros(1, 1, 6, 6))

    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("model", "ignored"),
    [
        (nn.Linear(3, 2), ()),
        (nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 2)), ()),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), ("0",)),
    ],
    ids=["output only", "one unit", "all ignored"],
)
def test_model_without_a_prunable_unit_is_refused(
    model: nn.Module, ignored: tuple[str, ...]
) -> None:
    with pytest.raises(UnsupportedLayerError, match="no prunable unit"):
        trace(model, torch.zeros(1, 3), ignored)


def test_tied_weights_are_refused_by_both_names() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight

    with pytest.raises(UnsupportedLayerError, match=r"0.weight = 2.weight.*ignored"):
        trace(model, torch.randn(1, 4))


def test_control_flow_that_depends_on_data_is_refused() -> None:
    model = chain(lambda x: x if x.mean() > 0.1 else -x)

    with pytest.raises(UnsupportedLayerError, match=r"forward \(Net\): a Python"):
        trace(model, torch.randn(2, 4))


def test_an_output_that_mixes_units_is_refused() -> None:
    def call(net: Any, x: Tensor) -> dict[str, Tensor]:
        hidden = F.relu(net.first(x))
        return {"logits": hidden, "norm": hidden.detach().norm()}

    with pytest.raises(UnsupportedLayerError, match=r"no prunable unit|norm"):
        trace(Net(call, first=nn.Linear(4, 6)), torch.randn(1, 4))


def test_forward_that_fails_is_an_error_that_names_the_shape() -> None:
    with pytest.raises(AutoFlipError, match=r"ConvFlat.*\(1, 3, 8, 8\)") as caught:
        trace(ConvFlat(), torch.zeros(1, 3, 8, 8))

    assert not isinstance(caught.value, UnsupportedLayerError)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_dtype_that_numpy_lacks_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()

    with pytest.raises(AutoFlipError, match="bfloat16"):
        trace(model, torch.zeros(1, 3, dtype=torch.bfloat16))


# --- Models that people have ---


def two(in_place: bool) -> nn.Module:
    """Two inputs, (3,) and (2,); may write into a view of its own activations."""

    def call(net: Any, a: Tensor, b: Tensor) -> Tensor:
        y = net.left(a)
        if in_place:
            y.view(-1, y.shape[-1]).add_(net.right(b))
            return net.last(F.relu(y, inplace=True))
        return net.last(F.relu(y + net.right(b)))

    sides = {"left": nn.Linear(3, 5), "right": nn.Linear(2, 5)}
    return Net(call, **sides, last=nn.Linear(5, 2))


def twice() -> nn.Module:
    """Uses one layer two times, so that its inputs are its outputs; input (4,)."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = F.gelu(net.first(x))
        return net.last(F.gelu(net.again(F.gelu(net.again(x)))))

    first, again = nn.Linear(4, 8), nn.Linear(8, 8)
    return Net(call, first=first, again=again, last=nn.Linear(8, 3))


def test_a_slope_a_channel_goes_with_its_layer() -> None:
    layout = check_model(lambda: chain(nn.PReLU(6)), torch.randn(4, 4))

    np.testing.assert_equal(layout.by_name["between.weight"].owners[0], np.arange(6))


@pytest.mark.parametrize("in_place", [False, True])
def test_several_inputs(in_place: bool) -> None:
    inputs = torch.randn(4, 3), torch.randn(4, 2)

    check_model(lambda: two(in_place), inputs, {"left": 5})


def test_a_layer_that_is_used_twice() -> None:
    check_model(twice, torch.randn(4, 4), {"first": 8})


def test_forward_that_casts_its_input() -> None:
    def call(net: Any, x: Tensor) -> Tensor:
        return net.fc(F.relu(net.conv(x.float() / 255)).flatten(1))

    model = Net(call, conv=nn.Conv2d(1, 4, 3), fc=nn.Linear(16, 2))
    layout = trace(model, torch.zeros(1, 1, 4, 4, dtype=torch.uint8))

    assert sizes(layout) == {"conv": 4}


def test_forward_that_needs_inputs_of_one_sign() -> None:
    model = chain(nn.Identity())
    model.register_forward_pre_hook(lambda module, args: (args[0].sqrt(),))

    assert sizes(trace(model, torch.ones(1, 4))) == {"first": 6, "middle": 5}


@pytest.mark.filterwarnings("ignore:examples are counted along axis 0")
def test_a_latent_space_that_is_drawn_stays_and_the_rest_is_pruned() -> None:
    def call(net: Any, x: Tensor) -> Tensor:
        """Draw a code, as a variational autoencoder does, also when it is evaluated."""
        x = torch.relu(net.first(x))
        drawn = torch.randn_like(net.spread(x))
        code = net.mean(x) + drawn * (net.spread(x) / 2).exp()
        return net.last(torch.relu(net.back(code)))

    code = {"mean": nn.Linear(8, 4), "spread": nn.Linear(8, 4)}
    ends = {"back": nn.Linear(4, 8), "last": nn.Linear(8, 6)}
    model = Net(call, first=nn.Linear(6, 8), **code, **ends)

    with pytest.warns(AutoFlipWarning, match="forward draws random numbers") as found:
        layout = trace(model, torch.zeros(1, 6))

    assert len(found) == 2  # and that no axis shows itself to be the batch
    assert sizes(layout) == {"first": 8, "back": 8}


# --- What removed units still do in the masked model ---


@pytest.mark.parametrize(
    ("activation", "answers"),
    [
        *((a, True) for a in (nn.Sigmoid(), nn.Softplus(), nn.Hardsigmoid())),
        *((a, False) for a in (nn.ReLU(), nn.Tanh(), nn.GELU(), nn.SiLU(), nn.ELU())),
        *((a, False) for a in (nn.Hardswish(), nn.PReLU())),
    ],
    ids=lambda a: type(a).__name__,
)
@pytest.mark.parametrize("norm", [False, True])
def test_units_that_answer_although_they_are_gone(
    activation: nn.Module, answers: bool, norm: bool
) -> None:
    between = [nn.BatchNorm1d(8)] if norm else []
    model = nn.Sequential(
        *(nn.Linear(6, 8), *between, activation),
        *(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)),
    )
    example = torch.zeros(2, 6)

    found = answering_groups(model, example, trace(model, example))

    assert found == (("0",) if answers else ())
