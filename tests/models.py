"""Small models that each hold one thing that tracing must get right, and plans."""

import copy
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_autoflip.graph.layout import Group, Layout, TensorSpec
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import arrays_of, load_arrays_inplace, shrink
from flwr_autoflip.graph.tracing.trace import trace


class ConvFlat(nn.Module):
    """Two convolutions, flatten, two linear layers; input (1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.fc1 = nn.Linear(6 * 2 * 2, 8)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class BatchNormNet(nn.Module):
    """Bias-free convolution before BatchNorm, and BatchNorm1d; input (2, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 3, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.fc1 = nn.Linear(5 * 4 * 4, 7)
        self.norm1 = nn.BatchNorm1d(7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.fc2(torch.sigmoid(self.norm1(self.fc1(x.flatten(1)))))


class Depthwise(nn.Module):
    """Pointwise, depthwise, pointwise; input (2, 6, 6)."""

    def __init__(self, multiplier: int = 1) -> None:
        super().__init__()
        self.up = nn.Conv2d(2, 6, 1)
        self.deep = nn.Conv2d(6, 6 * multiplier, 3, padding=1, groups=6)
        self.down = nn.Conv2d(6 * multiplier, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.deep(F.relu6(self.up(x))))
        return self.fc(F.relu(self.down(x)).mean((2, 3)))


class Grouped(nn.Module):
    """A convolution of three groups; input (2, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(2, 12, 1)
        self.norm = nn.BatchNorm2d(12)
        self.middle = nn.Conv2d(12, 6, 3, groups=3)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.middle(F.relu(self.norm(self.up(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Residual(nn.Module):
    """A sum with an identity and a sum with a projection; input (2, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 8, 3, stride=2)
        self.project = nn.Conv2d(6, 8, 3, stride=2)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.conv2(F.relu(self.norm1(self.conv1(x)))))
        x = F.relu(self.conv3(x) + self.project(x))
        return self.fc(x.mean((2, 3)))


class DenseBlock(nn.Module):
    """DenseNet: every layer sees all before it; input (2, 5, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 3, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(7)
        self.conv2 = nn.Conv2d(7, 3, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(10)
        self.fc = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.norm2(x)))], 1)
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.norm3(x)), 1).flatten(1))


class ConcatResidualFlatten(nn.Module):
    """A concatenation, a sum over it and a flatten of it; input (1, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 4, 3, padding=1)
        self.right = nn.Conv2d(1, 3, 1)
        self.mix = nn.Conv2d(7, 7, 3, padding=1)
        self.fc1 = nn.Linear(7 * 2 * 2, 6)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([F.relu(self.right(x)), F.relu(self.left(x))], 1)
        x = F.max_pool2d(F.relu(both + self.mix(both)), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class SqueezeExcite(nn.Module):
    """Channels scaled by a gate that they feed; input (2, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3)
        self.squeeze = nn.Conv2d(6, 4, 1)
        self.excite = nn.Conv2d(4, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        gate = F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        x = x * torch.sigmoid(self.excite(gate))
        return self.fc(x.mean((2, 3)))


class Conv1dNet(nn.Module):
    """Convolution and pooling over time; input (2, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 5, 3)
        self.conv2 = nn.Conv1d(5, 4, 3)
        self.fc = nn.Linear(4 * 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.conv1(x)), 2)
        x = F.adaptive_avg_pool1d(F.relu(self.conv2(x)), 3)
        return self.fc(x.flatten(1))


class Conv3dNet(nn.Module):
    """Convolution, BatchNorm and pooling over volumes; input (1, 6, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 5, 3, padding=1)
        self.norm = nn.BatchNorm3d(5)
        self.conv2 = nn.Conv3d(5, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.norm(self.conv1(x))), 2)
        x = F.adaptive_avg_pool3d(F.relu(self.conv2(x)), 1)
        return self.fc(x.flatten(1))


class PoolingKinds(nn.Module):
    """One pooling layer after another; input (1, 12, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.leaky_relu(self.conv1(x)), 2)
        x = F.adaptive_avg_pool2d(x, 5)
        x = F.max_pool2d(F.elu(self.conv2(x)), 2, stride=1)
        x = F.adaptive_max_pool2d(x, 2)
        return self.fc(x.view(x.size(0), -1))


class Branches(nn.Module):
    """A layer split into halves that go their own ways; input (2, 5, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3)])
        self.last = nn.ConvTranspose2d(4, 5, 2)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inner[0](x)) * torch.sigmoid(self.inner[1](x))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class HardView(nn.Module):
    """The first group's size is written into ``forward``; input (1, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc1 = nn.Linear(64, 8)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).view(-1, 64)
        return self.fc2(F.relu(self.fc1(x)))


class TiedLinear(nn.Module):
    """Two layers with one weight; input (4,)."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x)))


class FourierNet(nn.Module):
    """A layer whose units meet in a Fourier transform; input (4,)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.middle = nn.Linear(6, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.fft(F.relu(self.first(x))).real
        return self.last(F.relu(self.middle(x)))


class LstmNet(nn.Module):
    """Next character by an LSTM and two linear layers; input: 7 integers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.fc1 = nn.Linear(6, 5)
        self.fc2 = nn.Linear(5, 9)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embed(x))
        return self.fc2(F.relu(self.fc1(hidden[:, -1])))


class RolledNet(nn.Module):
    """Units that move one place on, twice, inside layers; input (4,)."""

    class Roll(nn.Module):
        """Nobody can tell a unit from its neighbour here."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.roll(x, 1, -1)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.turn = self.Roll()
        self.middle = nn.Linear(6, 5)
        self.again = self.Roll()
        self.inner = nn.Linear(5, 7)
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.turn(F.relu(self.first(x)))
        x = self.again(F.relu(self.middle(x)))
        return self.last(F.relu(self.inner(x)))


class RawParameters(nn.Module):
    """A two-layer network from bare parameters; input (3,)."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(3, 6))
        self.w2 = nn.Parameter(torch.randn(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x @ self.w1) @ self.w2


class RawBlock(nn.Module):
    """The same one level down, so that its parameters have a common prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.block = RawParameters()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


def sequential() -> nn.Sequential:
    """Everything in one ``nn.Sequential``, dropout at rate 0; input (1, 6, 6)."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 3),
        nn.ELU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.0),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.GELU(),
        nn.Linear(6, 3),
    )


ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv_flat": (ConvFlat, (1, 8, 8)),
    "batch_norm": (BatchNormNet, (2, 6, 6)),
    "depthwise": (Depthwise, (2, 6, 6)),
    "depthwise_times_2": (lambda: Depthwise(2), (2, 6, 6)),
    "grouped": (Grouped, (2, 6, 6)),
    "residual": (Residual, (2, 6, 6)),
    "dense_block": (DenseBlock, (2, 5, 5)),
    "concat_residual_flatten": (ConcatResidualFlatten, (1, 4, 4)),
    "squeeze_excite": (SqueezeExcite, (2, 6, 6)),
    "conv1d": (Conv1dNet, (2, 12)),
    "conv3d": (Conv3dNet, (1, 6, 6, 6)),
    "pooling": (PoolingKinds, (1, 12, 12)),
    "branches": (Branches, (2, 5, 5)),
    "sequential": (sequential, (1, 6, 6)),
    "raw_parameters": (RawParameters, (3,)),
    "raw_block": (RawBlock, (3,)),
}
"""Name to factory and the shape of one example."""


def build(name: str, seed: int = 0) -> nn.Module:
    """Build a model of the zoo with weights and buffers drawn from ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ZOO[name][0]()
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return model


def batch(name: str, size: int = 4, seed: int = 1) -> Tensor:
    """Draw a batch for a model of the zoo."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, *ZOO[name][1], generator=generator)


@lru_cache
def layout_of(name: str) -> Layout:
    """Trace a model of the zoo, once."""
    return trace(build(name), batch(name, 1))


def random_plan(layout: Layout, seed: int, masked: bool = False) -> Plan:
    """Keep random units of every group and, if asked for, random single weights."""
    generator = np.random.default_rng(seed)
    keep = {}
    for group in layout.groups:
        count = generator.integers(1, group.size + 1)
        drawn = generator.permutation(group.size)[:count]
        keep[group.name] = np.sort(drawn)
    mask = {
        spec.name: generator.random(spec.shape) < 0.7
        for spec in layout.tensors
        if masked and spec.trainable
    }
    return Plan(layout, keep, mask)


def masked_twin(model: nn.Module, plan: Plan) -> nn.Module:
    """Give the dense model whose removed coordinates are 0 and get no gradient."""
    twin = copy.deepcopy(model)
    load_arrays_inplace(twin, plan.apply(arrays_of(model)))
    for name, parameter in twin.named_parameters():
        mask = torch.as_tensor(plan.dense_mask(name))
        parameter.register_hook(lambda grad, mask=mask: grad * mask)
    return twin


def without_chance(model: nn.Module) -> nn.Module:
    """Switch dropout and stochastic depth off; returns the model."""
    for module in model.modules():
        if type(module).__name__ in ("Dropout", "StochasticDepth"):
            module.p = 0.0
    return model


def three_steps(model: nn.Module, inputs: tuple[Tensor, ...], rate: float) -> None:
    """Take three steps of SGD with momentum .9 and weight decay 1e-3."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-3
    )
    for _ in range(3):
        optimizer.zero_grad()
        out = model(*inputs)
        F.cross_entropy(out, torch.arange(len(out)) % out.shape[1]).backward()
        optimizer.step()


def assert_same_outputs(
    model: nn.Module, plan: Plan, inputs: tuple[Tensor, ...]
) -> None:
    """Compare shrunk and masked model, float64, in evaluation and training mode."""
    for training in (False, True):
        model = model.train(training)
        with torch.no_grad():  # lets torch fuse where it can
            expected = masked_twin(model, plan)(*inputs)
            got = shrink(model, plan)(*inputs)
        assert expected.std(0).mean() > 1e-8, "the signal is dead at the end"
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-11)


def assert_same_training(
    model: nn.Module, plan: Plan, inputs: tuple[Tensor, ...], rate: float = 0.1
) -> None:
    """Compare every coordinate of the shrunk and the masked model after training."""
    small, dense = shrink(model.train(), plan), masked_twin(model, plan)
    before = arrays_of(small)

    three_steps(small, inputs, rate)
    three_steps(dense, inputs, rate)

    little, big = arrays_of(small), arrays_of(dense)
    for spec in plan.layout.tensors:
        name = spec.name
        np.testing.assert_allclose(
            little[name], plan.take(name, big[name]), 1e-5, 1e-7, err_msg=name
        )
        if spec.trainable:
            np.testing.assert_array_equal(big[name][~plan.dense_mask(name)], 0)
    assert any((before[name] != little[name]).any() for name in before)


def random_arrays(layout: Layout, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw dense arrays of the layout's shapes and dtypes, none of them 0."""
    generator = np.random.default_rng(seed)
    return {
        spec.name: np.asarray(generator.uniform(1, 100, spec.shape)).astype(spec.dtype)
        for spec in layout.tensors
    }


def mlp_layout() -> Layout:
    """Layout of Linear 3 -> 4 -> 2, written by hand: units are the 4 neurons."""
    units = np.arange(4)
    return Layout(
        (
            TensorSpec("fc1.weight", (4, 3), "float32", True, (units, None), (1,), 1.0),
            TensorSpec("fc1.bias", (4,), "float32", True, (units,)),
            TensorSpec("fc2.weight", (2, 4), "float32", True, (None, units), (1,), 1.0),
            TensorSpec("fc2.bias", (2,), "float32", True, (None,)),
        ),
        (Group("fc1", 0, 4),),
    )


def flat_layout() -> Layout:
    """Convolution of 2 filters, BatchNorm, flatten of 2 places, 3 neurons, 1 output.

    Units 0, 1 are filters and 2, 3, 4 neurons. A filter owns 2 columns of fc1.
    """
    filters, neurons = np.arange(2), np.arange(2, 5)
    return Layout(
        (
            TensorSpec(
                "conv.weight",
                (2, 1, 1, 2),
                "float32",
                True,
                (filters, None, None, None),
                (1,),
                2.0,
                True,
            ),
            TensorSpec("norm.weight", (2,), "float32", True, (filters,)),
            TensorSpec("norm.bias", (2,), "float32", True, (filters,)),
            TensorSpec("norm.running_mean", (2,), "float32", False, (filters,)),
            TensorSpec("norm.num_batches_tracked", (), "int64", False, ()),
            TensorSpec(
                "fc1.weight",
                (3, 4),
                "float32",
                True,
                (neurons, np.array([0, 0, 1, 1])),
                (1,),
                1.0,
            ),
            TensorSpec("fc1.bias", (3,), "float32", True, (neurons,)),
            TensorSpec(
                "fc2.weight", (1, 3), "float32", True, (None, neurons), (1,), 1.0
            ),
        ),
        (Group("conv", 0, 2), Group("fc1", 2, 3)),
    )


def masked_plan() -> Plan:
    """Neurons 0 and 2 of 4, without some single weights."""
    first = np.ones((4, 3), np.bool_)
    first[0, 1] = first[2, 0] = False
    second = np.ones((2, 4), np.bool_)
    second[0, 2] = second[1, 0] = False
    return Plan(
        mlp_layout(),
        {"fc1": np.array([0, 2])},
        {"fc1.weight": first, "fc2.weight": second},
    )
