"""The small model computes and learns what the masked dense model does."""

import copy
import re
import warnings
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    ZOO,
    ConvFlat,
    assert_same_outputs,
    assert_same_training,
    batch,
    build,
    layout_of,
    random_arrays,
    random_plan,
    without_chance,
)
from torch import nn
from torch.nn import functional as F

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.pack import expand, pack
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.shrink import (
    arrays_of,
    check_model,
    hold_mask,
    load_arrays_inplace,
    register_resize,
    shrink,
)
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.ledger.cost import count_macs

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def masked(model: nn.Module, plan: Plan) -> nn.Module:
    """Give the dense model with everything that is not kept at 0."""
    twin = copy.deepcopy(model)
    load_arrays_inplace(twin, plan.apply(arrays_of(model)))
    return twin


def step(model: nn.Module, x: torch.Tensor) -> None:
    """Take one step of SGD as the brief says: lr .1, momentum .9, decay 1e-3."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3
    )
    out = model(x)
    target = torch.arange(len(x)) % out.shape[1]
    optimizer.zero_grad()
    F.cross_entropy(out, target).backward()
    optimizer.step()


def assert_kept_equal(dense: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Compare every kept coordinate, buffers too."""
    big, little = arrays_of(dense), arrays_of(small)
    for spec in plan.layout.tensors:
        kept = plan.small_mask.get(spec.name, np.bool_(True))
        np.testing.assert_allclose(
            np.where(kept, little[spec.name], 0),
            np.where(kept, plan.take(spec.name, big[spec.name]), 0),
            err_msg=spec.name,
            **CLOSE,
        )


# --- Equivalence, model by model ---


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), with_mask=st.booleans())
def test_small_model_computes_what_the_masked_one_does(
    name: str, training: bool, seed: int, with_mask: bool
) -> None:
    plan = random_plan(layout_of(name), seed, with_mask)
    model = build(name).train(training)
    x = batch(name)

    small = shrink(model, plan)
    dense = masked(model, plan)

    assert small.training == training
    np.testing.assert_allclose(
        small(x).detach().numpy(), dense(x).detach().numpy(), **CLOSE
    )


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), with_mask=st.booleans())
def test_one_step_moves_kept_coordinates_as_in_the_masked_model(
    name: str, seed: int, with_mask: bool
) -> None:
    plan = random_plan(layout_of(name), seed, with_mask)
    model = build(name).train()
    x = batch(name)
    small, dense = shrink(model, plan), masked(model, plan)
    before = arrays_of(small)

    with hold_mask(small, plan):
        step(small, x)
    step(dense, x)

    if not with_mask:  # a mask may leave nothing that a gradient reaches
        assert any((before[n] != a).any() for n, a in arrays_of(small).items())
    assert_kept_equal(dense, small, plan)


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_small_model_has_the_plans_size_and_values(name: str, seed: int) -> None:
    plan = random_plan(layout_of(name), seed)
    model = build(name)
    dense = arrays_of(model)

    small = arrays_of(shrink(model, plan))

    assert list(small) == [spec.name for spec in plan.layout.tensors]
    for spec in plan.layout.tensors:
        assert small[spec.name].shape == plan.small_shape(spec.name)
        np.testing.assert_array_equal(
            small[spec.name], plan.take(spec.name, dense[spec.name])
        )
    count = sum(small[t.name].size for t in plan.layout.tensors if t.trainable)
    assert count == plan.num_parameters


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b3"])
def test_torchvision_models_compute_the_same(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(models, name)(num_classes=10).eval()
        x = torch.randn(8, 3, 32, 32)
    layout = trace(model, x[:1])
    model, x = model.double(), x.double()  # so deep that float32 differs by 1e-4
    plan = random_plan(layout, seed=3)
    calibrate(model, plan, x)

    small, dense = shrink(model, plan), masked(model, plan)

    assert plan.num_parameters < layout.num_parameters / 2
    assert sum(p.numel() for p in small.parameters()) == plan.num_parameters
    with torch.no_grad():
        expected = dense(x)
        assert expected.std(0).mean() > 1e-3  # the signal is alive at the end
        np.testing.assert_allclose(small(x).numpy(), expected.numpy(), **CLOSE)


@lru_cache
def torchvision_case(name: str) -> tuple[nn.Module, torch.Tensor, Layout]:
    """Build a model in float64, a batch, and its layout."""
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(models, name)(num_classes=10)
        if name == "vgg11_bn":  # 4096 neurons twice would take most of the time
            model.avgpool = nn.AdaptiveAvgPool2d(1)
            model.classifier = nn.Sequential(
                nn.Linear(512, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10)
            )
        x = torch.randn(4, 3, 32, 32)
    layout = trace(model, x[:1])
    return without_chance(model.double()), x.double(), layout


TORCHVISION = [
    "resnet18",
    "resnet50",
    "efficientnet_b3",
    "mobilenet_v3_small",
    "vgg11_bn",
]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_models_compute_and_train_the_same(name: str) -> None:
    model, x, layout = torchvision_case(name)
    model = copy.deepcopy(model)
    plan = random_plan(layout, seed=4)
    calibrate(model, plan, x)

    assert plan.num_parameters < layout.num_parameters / 2
    assert_same_outputs(model, plan, (x,))
    # Four values a channel make gradients so large that big steps end in chaos.
    rate = 1e-5 if name == "efficientnet_b3" else 0.01
    assert_same_training(model, plan, (x,), rate)


@pytest.mark.parametrize("name", TORCHVISION)
def test_plan_foretells_the_macs_of_torchvision_models(name: str) -> None:
    model, x, layout = torchvision_case(name)
    plan = random_plan(layout, seed=5)

    small = shrink(model, plan)

    assert plan.macs == pytest.approx(count_macs(small, x), abs=1e-6, rel=0)


@pytest.mark.parametrize("name", TORCHVISION)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_expand_puts_torchvision_models_back(name: str, seed: int) -> None:
    _, _, layout = torchvision_case(name)
    plan = random_plan(layout, seed)
    arrays, base = (random_arrays(layout, s) for s in (seed, seed + 1))

    full = expand(base, pack(arrays, plan), plan)

    for spec in layout.tensors:
        kept = plan.dense_mask(spec.name)
        expected = np.where(kept, arrays[spec.name], base[spec.name])
        np.testing.assert_array_equal(full[spec.name], expected, err_msg=spec.name)


def calibrate(model: nn.Module, plan: Plan, x: torch.Tensor) -> None:
    """Set BatchNorm's statistics to the masked model's own, or its signal dies out."""
    twin = masked(model, plan)
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    with torch.no_grad():
        twin(x)
    buffers = {name: array.numpy() for name, array in twin.named_buffers()}
    load_arrays_inplace(model, arrays_of(model) | buffers)


# --- What shrink promises beyond equivalence ---


def test_shrink_leaves_the_dense_model_alone() -> None:
    model = build("conv_flat")
    before = arrays_of(model)
    plan = random_plan(layout_of("conv_flat"), 0, masked=True)

    small = shrink(model, plan)
    step(small, batch("conv_flat"))

    assert model.conv1.out_channels == 4
    for name, array in arrays_of(model).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_whole_plan_is_a_copy_that_shares_no_memory() -> None:
    model = build("batch_norm")
    plan = dense_plan(layout_of("batch_norm"))

    small = shrink(model, plan)
    theirs = small.state_dict()
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(theirs[name].numpy(), tensor.numpy())
        assert theirs[name].data_ptr() != tensor.data_ptr()


def test_size_attributes_follow_the_tensors() -> None:
    plan = Plan(
        layout_of("depthwise_times_2"),
        {"up": np.array([1, 4]), "down": np.array([0, 2, 3])},
    )

    small = shrink(build("depthwise_times_2"), plan)

    # 2 channels in the middle, each making 2: 2 -> 2 (depthwise) -> 4 -> 3 -> 3.
    assert (small.up.in_channels, small.up.out_channels) == (2, 2)
    assert (small.deep.in_channels, small.deep.out_channels) == (2, 4)
    assert small.deep.groups == 2
    assert (small.down.in_channels, small.down.out_channels) == (4, 3)
    assert (small.fc.in_features, small.fc.out_features) == (3, 3)


def test_size_attributes_of_norm_and_groups() -> None:
    plan = Plan(layout_of("grouped"), {"up": np.array([0, 3]), "middle": np.array([1])})

    small = shrink(build("grouped"), plan)

    # Three groups of 2 places: 6 channels in, 3 out, still three groups.
    assert small.norm.num_features == 6
    assert (small.middle.in_channels, small.middle.out_channels) == (6, 3)
    assert small.middle.groups == 3


def test_frozen_parameters_stay_frozen() -> None:
    model = build("conv_flat")
    model.conv1.weight.requires_grad_(False)

    small = shrink(model, random_plan(layout_of("conv_flat"), 0))

    assert not small.conv1.weight.requires_grad
    assert small.conv1.bias.requires_grad


def test_registered_resizer_serves_subclasses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Scale(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size
            self.weight = nn.Parameter(torch.ones(size))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    class Child(Scale):
        pass

    from flwr_autoflip.graph import shrink as module

    monkeypatch.setattr(module, "_RESIZERS", dict(module._RESIZERS))

    @register_resize(Scale)
    def resize(layer: Scale) -> None:
        layer.size = len(layer.weight)

    model = nn.Sequential(nn.Linear(3, 5), Child(5), nn.Linear(5, 2))
    layout = trace(model, torch.zeros(1, 3))

    small = shrink(model, Plan(layout, {"0": np.array([0, 3])}))

    assert small[1].size == 2


def test_shrink_refuses_another_model() -> None:
    plan = dense_plan(layout_of("conv_flat"))
    other = ConvFlat()
    other.fc2 = nn.Linear(8, 5)

    with pytest.raises(AutoFlipError, match=re.escape("fc2.weight: expected (3, 8)")):
        shrink(other, plan)


def test_check_model_names_missing_and_surplus_tensors() -> None:
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(1, 4, 3))

    with pytest.raises(AutoFlipError, match=r"conv2\.weight: .*got nothing"):
        check_model(model, layout_of("conv_flat"))


def test_check_model_refuses_another_order() -> None:
    model = ConvFlat()
    model._modules = dict(reversed(model._modules.items()))

    with pytest.raises(AutoFlipError, match="another order"):
        check_model(model, layout_of("conv_flat"))


# --- hold_mask ---

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masked_weights_stay_0_and_others_move(optimizer: str) -> None:
    plan = random_plan(layout_of("conv_flat"), 5, masked=True)
    small = shrink(build("conv_flat"), plan)
    before = arrays_of(small)
    x = batch("conv_flat", 8)
    optim = OPTIMIZERS[optimizer](small.parameters())

    with hold_mask(small, plan):
        for _ in range(3):
            optim.zero_grad()
            F.cross_entropy(small(x), torch.arange(8) % 3).backward()
            optim.step()

    assert plan.small_mask
    moved = 0
    for name, after in arrays_of(small).items():
        mask = plan.small_mask.get(name, np.ones(after.shape, np.bool_))
        np.testing.assert_array_equal(after[~mask], 0, err_msg=name)
        moved += np.count_nonzero((after != before[name])[mask])
    assert moved > plan.num_parameters / 2


def test_hooks_are_gone_after_the_context() -> None:
    plan = random_plan(layout_of("conv_flat"), 5, masked=True)
    small = shrink(build("conv_flat"), plan)
    x = batch("conv_flat", 8)

    with hold_mask(small, plan):
        small(x).square().sum().backward()
        held = {n: p.grad.numpy().copy() for n, p in small.named_parameters()}
    small.zero_grad()
    small(x).square().sum().backward()

    free = {n: p.grad.numpy() for n, p in small.named_parameters()}
    for name, mask in plan.small_mask.items():
        np.testing.assert_array_equal(held[name][~mask], 0, err_msg=name)
    assert any(free[n][~mask].any() for n, mask in plan.small_mask.items())
    assert not any(p._backward_hooks for p in small.parameters())


def test_hooks_are_gone_after_an_error() -> None:
    plan = random_plan(layout_of("conv_flat"), 5, masked=True)
    small = shrink(build("conv_flat"), plan)

    with pytest.raises(KeyError), hold_mask(small, plan):
        raise KeyError

    assert not any(p._backward_hooks for p in small.parameters())


def test_loading_arrays_gives_them_back() -> None:
    model = build("batch_norm")
    arrays = {n: a + 1 for n, a in arrays_of(model).items()}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_arrays_inplace(model, arrays)

    for name, array in arrays_of(model).items():
        np.testing.assert_array_equal(array, arrays[name])
