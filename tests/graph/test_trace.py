"""What tracing finds in a model, what it warns of and what it refuses."""

import warnings

import numpy as np
import pytest
import torch
from models import (
    ConvFlat,
    FourierNet,
    HardView,
    LstmNet,
    RawParameters,
    RolledNet,
    TiedLinear,
    batch,
    build,
    layout_of,
    random_plan,
)
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_autoflip.errors import (
    AutoFlipError,
    AutoFlipWarning,
    UnsupportedLayerError,
)
from flwr_autoflip.graph.codec import layout_digest
from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import arrays_of, load_arrays_inplace, shrink
from flwr_autoflip.graph.tracing.trace import trace


def sizes(layout: Layout) -> dict[str, int]:
    """Give group name -> number of units."""
    return {group.name: group.size for group in layout.groups}


def assert_equivalent(model: nn.Module, layout: Layout, x: Tensor) -> None:
    """Check three random plans: small and masked outputs are equal."""
    for seed in range(3):
        plan = random_plan(layout, seed)
        twin = type(model)()
        load_arrays_inplace(twin, plan.apply(arrays_of(model)))
        np.testing.assert_allclose(
            shrink(model, plan).eval()(x).detach().numpy(),
            twin.eval()(x).detach().numpy(),
            rtol=1e-5,
            atol=1e-5,
        )


# --- Layouts, by hand ---


def test_layout_of_convolutions_flatten_and_linear() -> None:
    layout = layout_of("conv_flat")

    # Units 0-3 conv1, 4-9 conv2, 10-17 fc1; fc2's rows are the output: nobody's.
    assert sizes(layout) == {"conv1": 4, "conv2": 6, "fc1": 8}
    assert [group.first for group in layout.groups] == [0, 4, 10]
    conv1, conv2, fc1, fc2 = (
        layout.by_name[f"{name}.weight"] for name in ("conv1", "conv2", "fc1", "fc2")
    )
    np.testing.assert_array_equal(conv1.owners[0], np.arange(4))
    assert conv1.owners[1:] == (None, None, None)
    np.testing.assert_array_equal(conv2.owners[0], np.arange(4, 10))
    np.testing.assert_array_equal(conv2.owners[1], np.arange(4))
    # Flatten: each of 6 filters owns a run of 2 x 2 columns.
    np.testing.assert_array_equal(fc1.owners[1], np.repeat(np.arange(4, 10), 4))
    np.testing.assert_array_equal(fc1.owners[0], np.arange(10, 18))
    assert fc2.owners[0] is None
    np.testing.assert_array_equal(fc2.owners[1], np.arange(10, 18))
    for spec in (conv2, fc1, fc2):
        assert spec.input_axes == (1,)
    # 8 x 8 and 4 x 4 places a filter; a linear weight is used once.
    assert [s.macs_per_weight for s in (conv1, conv2, fc1, fc2)] == [64, 16, 1, 1]


def test_layout_lists_tensors_as_the_state_dict_does() -> None:
    model = build("batch_norm")

    layout = layout_of("batch_norm")

    state = model.state_dict()
    assert [t.name for t in layout.tensors] == list(state)
    assert [t.shape for t in layout.tensors] == [tuple(t.shape) for t in state.values()]
    assert [t.dtype for t in layout.tensors] == [
        str(t.dtype).removeprefix("torch.") for t in state.values()
    ]
    parameters = [name for name, _ in model.named_parameters()]
    assert [t.name for t in layout.tensors if t.trainable] == parameters


def test_batch_norm_goes_with_its_convolution() -> None:
    layout = layout_of("batch_norm")

    assert sizes(layout) == {"conv": 5, "fc1": 7}
    for name in ("weight", "bias", "running_mean", "running_var"):
        (owners,) = layout.by_name[f"norm.{name}"].owners
        np.testing.assert_array_equal(owners, np.arange(5))
    assert layout.by_name["norm.num_batches_tracked"].owners == ()
    assert layout.by_name["conv.weight"].normalized
    assert layout.by_name["fc1.weight"].normalized
    assert not layout.by_name["fc2.weight"].normalized


def test_depthwise_channel_goes_with_what_it_makes() -> None:
    layout = layout_of("depthwise_times_2")

    # Channel i of `up` makes channels 2i and 2i + 1 of `deep`.
    assert sizes(layout) == {"up": 6, "down": 4}
    deep, down = layout.by_name["deep.weight"], layout.by_name["down.weight"]
    np.testing.assert_array_equal(deep.owners[0], np.repeat(np.arange(6), 2))
    assert deep.owners[1] is None
    np.testing.assert_array_equal(down.owners[1], np.repeat(np.arange(6), 2))


def test_grouped_convolution_loses_the_same_places_of_every_group() -> None:
    layout = layout_of("grouped")

    # 12 channels in 3 groups of 4 places, 6 made in 3 groups of 2 places.
    assert sizes(layout) == {"up": 4, "middle": 2}
    np.testing.assert_array_equal(
        layout.by_name["up.weight"].owners[0], np.tile(np.arange(4), 3)
    )
    np.testing.assert_array_equal(
        layout.by_name["middle.weight"].owners[0], np.tile([4, 5], 3)
    )
    np.testing.assert_array_equal(
        layout.by_name["middle.weight"].owners[1], np.arange(4)
    )


def test_residual_sums_have_one_owner() -> None:
    layout = layout_of("residual")

    # stem = conv2 (identity sum), conv3 = project (projected sum).
    assert sizes(layout) == {"stem": 6, "conv1": 4, "conv3": 8}
    for left, right in (("stem", "conv2"), ("conv3", "project")):
        np.testing.assert_array_equal(
            layout.by_name[f"{left}.weight"].owners[0],
            layout.by_name[f"{right}.weight"].owners[0],
        )


def test_concatenated_axis_has_several_owners() -> None:
    layout = layout_of("dense_block")

    # stem 0-3, conv1 4-6, conv2 7-9.
    assert sizes(layout) == {"stem": 4, "conv1": 3, "conv2": 3}
    np.testing.assert_array_equal(
        layout.by_name["norm2.weight"].owners[0], np.arange(7)
    )
    np.testing.assert_array_equal(layout.by_name["fc.weight"].owners[1], np.arange(10))


def test_concatenation_residual_and_flatten_together() -> None:
    layout = layout_of("concat_residual_flatten")

    # cat([right, left]); left 0-3 comes first in the state_dict, right 4-6.
    assert sizes(layout) == {"left": 4, "right": 3, "fc1": 6}
    channels = [4, 5, 6, 0, 1, 2, 3]
    mix = layout.by_name["mix.weight"]
    np.testing.assert_array_equal(mix.owners[0], channels)
    np.testing.assert_array_equal(mix.owners[1], channels)
    np.testing.assert_array_equal(
        layout.by_name["fc1.weight"].owners[1], np.repeat(channels, 4)
    )


def test_gate_goes_with_the_channels_it_scales() -> None:
    layout = layout_of("squeeze_excite")

    assert sizes(layout) == {"conv": 6, "squeeze": 4}
    np.testing.assert_array_equal(
        layout.by_name["excite.weight"].owners[0],
        layout.by_name["conv.weight"].owners[0],
    )


def test_bare_parameters_are_traced() -> None:
    layout = layout_of("raw_parameters")

    # w1 (3, 6) makes 6 units along axis 1; w2 (6, 2) consumes them along axis 0.
    assert [group.size for group in layout.groups] == [6]
    assert layout.by_name["w1"].own_axes == (1,)
    assert layout.by_name["w2"].own_axes == ()
    np.testing.assert_array_equal(layout.by_name["w2"].owners[0], np.arange(6))


def test_batch_of_the_example_does_not_matter() -> None:
    model = build("conv_flat")

    one, two = (trace(model, batch("conv_flat", n)) for n in (1, 2))

    assert layout_digest(one) == layout_digest(two)


def test_tracing_twice_gives_the_same_layout_whatever_the_weights() -> None:
    one = trace(build("residual", 0), batch("residual", 1, 0))
    two = trace(build("residual", 9), batch("residual", 1, 9))

    assert layout_digest(one) == layout_digest(two)


def test_tracing_leaves_the_model_alone() -> None:
    model = build("batch_norm").train()
    before = arrays_of(model)

    trace(model, batch("batch_norm", 1))

    assert model.training
    assert model.norm.training
    assert not any(m._forward_hooks for m in model.modules())
    for name, array in arrays_of(model).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_several_inputs_come_as_a_tuple() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Linear(3, 5)
            self.right = nn.Linear(2, 5)
            self.last = nn.Linear(5, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.last(F.relu(self.left(a) + self.right(b)))

    layout = trace(Two(), (torch.zeros(1, 3), torch.zeros(1, 2)))

    assert sizes(layout) == {"left": 5}
    np.testing.assert_array_equal(
        layout.by_name["right.weight"].owners[0], np.arange(5)
    )


def test_layer_that_forward_never_uses_stays_dense() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(3, 5)
            self.first = nn.Linear(3, 4)
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.first(x)))

    layout = trace(Unused(), torch.zeros(1, 3))

    assert sizes(layout) == {"first": 4}
    assert layout.by_name["spare.weight"].owners == (None, None)


# --- exclude ---


def test_excluded_first_layer_stays_dense() -> None:
    layout = trace(build("conv_flat"), batch("conv_flat", 1), ignored_layers=("conv1",))

    assert sizes(layout) == {"conv2": 6, "fc1": 8}


def test_excluding_a_layer_leaves_the_layer_before_it_prunable() -> None:
    layout = trace(build("conv_flat"), batch("conv_flat", 1), ignored_layers=("conv2",))

    assert sizes(layout) == {"conv1": 4, "fc1": 8}


def test_excluding_a_block_excludes_what_it_holds() -> None:
    layout = trace(build("branches"), batch("branches", 1), ignored_layers=("inner",))

    assert sizes(layout) == {"last": 5}


def test_excluding_is_not_by_prefix_of_a_name() -> None:
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(3, 4))
    model.add_module("fc1", nn.Linear(4, 5))
    model.add_module("fc2", nn.Linear(5, 2))

    layout = trace(model, torch.zeros(1, 3), ignored_layers=("fc",))

    assert sizes(layout) == {"fc1": 5}


@pytest.mark.parametrize("enabled", [True, False])
def test_tracing_leaves_torchs_fused_attention_as_it_was(enabled: bool) -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        trace(build("conv_flat"), batch("conv_flat", 1))
        after_success = torch.backends.mha.get_fastpath_enabled()
        with pytest.raises(AutoFlipError, match="forward fails"):
            trace(build("conv_flat"), torch.zeros(1, 3, 8, 8))
        after_error = torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(before)

    assert after_success == enabled
    assert after_error == enabled


def test_tracing_follows_encoder_layers_that_torch_would_fuse() -> None:
    seen = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.backends.mha.get_fastpath_enabled())
            return super().forward(x)

    trace(nn.Sequential(Watched(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 3))

    assert seen
    assert not any(seen)


def test_unknown_exclude_name_is_an_error() -> None:
    with pytest.raises(AutoFlipError, match=r"no module named .*conv9"):
        trace(build("conv_flat"), batch("conv_flat", 1), ignored_layers=("conv9",))


# --- What cannot be pruned ---


def test_hard_coded_view_warns_and_the_rest_is_pruned() -> None:
    with pytest.warns(AutoFlipWarning, match=r"'conv' stays dense.*flatten\(1\)"):
        layout = trace(HardView(), torch.zeros(1, 1, 6, 6))

    assert sizes(layout) == {"fc1": 8}
    assert layout.by_name["conv.weight"].owners == (None,) * 4
    assert_equivalent(HardView(), layout, torch.randn(4, 1, 6, 6))


def test_warning_points_at_the_caller() -> None:
    with pytest.warns(AutoFlipWarning) as caught:
        trace(HardView(), torch.zeros(1, 1, 6, 6))

    assert caught[0].filename == __file__


def test_no_warning_for_a_model_that_shrinks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layout = trace(ConvFlat(), torch.zeros(1, 1, 8, 8))

    assert layout.num_units == 18


def test_sliced_channels_stay_dense() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 6)
            self.middle = nn.Linear(4, 5)
            self.last = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.middle(F.relu(self.first(x))[:, :4])))

    with pytest.warns(AutoFlipWarning, match="'first' stays dense"):
        layout = trace(Sliced(), torch.zeros(1, 3))

    assert sizes(layout) == {"middle": 5}


def test_softmax_over_channels_freezes_them() -> None:
    model = nn.Sequential(
        nn.Linear(3, 5), nn.Softmax(1), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)
    )

    layout = trace(model, torch.zeros(1, 3))

    assert sizes(layout) == {"2": 4}


def test_shared_parameter_is_refused_by_both_names() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"one\.weight = two\.weight"):
        trace(TiedLinear(), torch.zeros(1, 4))


def test_unknown_operator_is_refused_by_layer_and_operator() -> None:
    with pytest.raises(UnsupportedLayerError) as caught:
        trace(RolledNet(), torch.zeros(1, 4))

    # All of them, in one error.
    assert "turn (Roll): roll" in str(caught.value)
    assert "again (Roll): roll" in str(caught.value)
    assert "ignored_layers=" in str(caught.value)


def test_rolled_units_work_once_their_feeders_are_excluded() -> None:
    layout = trace(RolledNet(), torch.zeros(1, 4), ignored_layers=("first", "middle"))

    assert sizes(layout) == {"inner": 7}
    assert_equivalent(RolledNet(), layout, torch.randn(4, 4))


def test_fourier_transform_works_once_its_feeder_is_excluded() -> None:
    with pytest.raises(UnsupportedLayerError, match="fft"):
        trace(FourierNet(), torch.zeros(1, 4))

    layout = trace(FourierNet(), torch.zeros(1, 4), ignored_layers=("first",))

    assert sizes(layout) == {"middle": 5}
    assert_equivalent(FourierNet(), layout, torch.randn(4, 4))


def test_lstm_stays_dense_once_it_is_excluded() -> None:
    x = torch.zeros(1, 7, dtype=torch.int64)

    layout = trace(LstmNet(), x, ignored_layers=("lstm",))

    assert sizes(layout) == {"embed": 4, "fc1": 5}
    assert_equivalent(LstmNet(), layout, torch.arange(28).reshape(4, 7) % 9)


def test_forward_that_fails_is_an_error_that_names_the_shape() -> None:
    with pytest.raises(AutoFlipError, match=r"ConvFlat.*\(1, 3, 8, 8\)") as caught:
        trace(ConvFlat(), torch.zeros(1, 3, 8, 8))

    assert not isinstance(caught.value, UnsupportedLayerError)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_dtype_that_numpy_lacks_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()

    with pytest.raises(AutoFlipError, match="bfloat16"):
        trace(model, torch.zeros(1, 3, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("model", "exclude"),
    [
        (nn.Linear(3, 2), ()),
        (nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 2)), ()),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), ("0",)),
    ],
    ids=["output only", "one unit", "all excluded"],
)
def test_model_without_a_prunable_unit_is_refused(
    model: nn.Module, exclude: tuple[str, ...]
) -> None:
    with pytest.raises(UnsupportedLayerError, match="no prunable unit"):
        trace(model, torch.zeros(1, 3), ignored_layers=exclude)


# --- Models that people have ---


class PReluNet(nn.Module):
    """A learned slope a channel; input (3,)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.act = nn.PReLU(5)
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x)))


class ScaledImages(nn.Module):
    """Bytes turned into [0, 1] in ``forward``; input (1, 4, 4) uint8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x.float() / 255)).flatten(1))


class RootOfInput(nn.Module):
    """Amplitudes from energies: inputs are never negative; input (3,)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x.sqrt())))


def test_prelu_goes_with_its_layer() -> None:
    layout = trace(PReluNet(), torch.zeros(1, 3))

    np.testing.assert_array_equal(layout.by_name["act.weight"].owners[0], np.arange(5))
    assert_equivalent(PReluNet(), layout, torch.randn(4, 3))


def test_forward_that_casts_its_input() -> None:
    layout = trace(ScaledImages(), torch.zeros(1, 1, 4, 4, dtype=torch.uint8))

    assert sizes(layout) == {"conv": 4}


def test_forward_that_needs_inputs_of_one_sign() -> None:
    layout = trace(RootOfInput(), torch.ones(1, 3))

    assert sizes(layout) == {"first": 5}


def test_transposed_convolution_after_a_norm_is_not_normalized() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 5, 3),
        nn.ReLU(),
        nn.Conv2d(5, 2, 3),
    )

    layout = trace(model, torch.zeros(1, 1, 6, 6))

    assert layout.by_name["0.weight"].normalized
    assert not layout.by_name["3.weight"].normalized


def test_branch_added_to_a_normalized_one_is_not_normalized() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.inner = nn.Conv2d(4, 6, 3, padding=1)
            self.outer = nn.Conv2d(6, 4, 3, padding=1)
            self.last = nn.Conv2d(4, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x))
            return self.last(F.relu(x + self.outer(F.relu(self.inner(x)))))

    layout = trace(Sum(), torch.zeros(1, 1, 6, 6))

    assert layout.by_name["conv.weight"].normalized
    assert not layout.by_name["outer.weight"].normalized


def test_bare_parameters_shrink_by_their_own_axis() -> None:
    layout = layout_of("raw_parameters")
    plan = Plan(layout, {layout.groups[0].name: np.array([0, 5])})

    assert plan.small_shape("w1") == (3, 2)
    assert plan.small_shape("w2") == (2, 2)
    assert_equivalent(RawParameters(), layout, torch.randn(4, 3))
