"""Small models that each hold one thing that tracing must get right, and plans."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_autoflip.graph.layout import Group, Layout, TensorSpec
from flwr_autoflip.graph.plan import Plan
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


class Net(nn.Module):
    """Modules or parameters by name, and a function of them and the input."""

    def __init__(self, call: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any, **given: Any) -> Any:
        return self.call(self, *inputs, **given)


def batch_norm() -> nn.Module:
    """Bias-free convolution before BatchNorm, and BatchNorm1d; input (2, 6, 6)."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = F.relu(net.norm(net.conv(x)))
        return net.fc2(torch.sigmoid(net.norm1(net.fc1(x.flatten(1)))))

    parts = {"conv": nn.Conv2d(2, 5, 3, bias=False), "norm": nn.BatchNorm2d(5)}
    parts |= {"fc1": nn.Linear(5 * 4 * 4, 7), "norm1": nn.BatchNorm1d(7)}
    return Net(call, **parts, fc2=nn.Linear(7, 3))


def depthwise(multiplier: int = 1) -> nn.Module:
    """Pointwise, depthwise, pointwise; input (2, 6, 6)."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = F.hardswish(net.deep(F.relu6(net.up(x))))
        return net.fc(F.relu(net.down(x)).mean((2, 3)))

    deep = nn.Conv2d(6, 6 * multiplier, 3, padding=1, groups=6)
    down = nn.Conv2d(6 * multiplier, 4, 1)
    return Net(call, up=nn.Conv2d(2, 6, 1), deep=deep, down=down, fc=nn.Linear(4, 3))


def grouped() -> nn.Module:
    """A convolution of three groups; input (2, 6, 6)."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = F.relu(net.middle(F.relu(net.norm(net.up(x)))))
        return net.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    parts = {"up": nn.Conv2d(2, 12, 1), "norm": nn.BatchNorm2d(12)}
    return Net(call, **parts, middle=nn.Conv2d(12, 6, 3, groups=3), fc=nn.Linear(6, 3))


def residual() -> nn.Module:
    """A sum with an identity and a sum with a projection; input (2, 6, 6)."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = F.relu(net.stem(x))
        x = F.relu(x + net.conv2(F.relu(net.norm1(net.conv1(x)))))
        x = F.relu(net.conv3(x) + net.project(x))
        return net.fc(x.mean((2, 3)))

    parts = {"stem": nn.Conv2d(2, 6, 3, padding=1)}
    parts |= {"conv1": nn.Conv2d(6, 4, 3, padding=1), "norm1": nn.BatchNorm2d(4)}
    parts |= {"conv2": nn.Conv2d(4, 6, 3, padding=1)}
    parts |= {name: nn.Conv2d(6, 8, 3, stride=2) for name in ("conv3", "project")}
    return Net(call, **parts, fc=nn.Linear(8, 3))


def dense_block() -> nn.Module:
    """DenseNet: every layer sees all before it; input (2, 5, 5)."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = torch.cat([x, net.conv1(F.relu(net.norm1(x)))], 1)
        x = torch.cat([x, net.conv2(F.relu(net.norm2(x)))], 1)
        return net.fc(F.adaptive_avg_pool2d(F.relu(net.norm3(x)), 1).flatten(1))

    parts = {"stem": nn.Conv2d(2, 4, 3, padding=1), "norm1": nn.BatchNorm2d(4)}
    parts |= {"conv1": nn.Conv2d(4, 3, 3, padding=1), "norm2": nn.BatchNorm2d(7)}
    parts |= {"conv2": nn.Conv2d(7, 3, 3, padding=1), "norm3": nn.BatchNorm2d(10)}
    return Net(call, **parts, fc=nn.Linear(10, 3))


def concat_residual_flatten() -> nn.Module:
    """A concatenation, a sum over it and a flatten of it; input (1, 4, 4)."""

    def call(net: Any, x: Tensor) -> Tensor:
        both = torch.cat([F.relu(net.right(x)), F.relu(net.left(x))], 1)
        x = F.max_pool2d(F.relu(both + net.mix(both)), 2)
        return net.fc2(F.relu(net.fc1(torch.flatten(x, 1))))

    parts = {"left": nn.Conv2d(1, 4, 3, padding=1), "right": nn.Conv2d(1, 3, 1)}
    parts |= {"mix": nn.Conv2d(7, 7, 3, padding=1), "fc1": nn.Linear(7 * 2 * 2, 6)}
    return Net(call, **parts, fc2=nn.Linear(6, 3))


def squeeze_excite() -> nn.Module:
    """Channels scaled by a gate that they feed; input (2, 6, 6)."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = F.silu(net.conv(x))
        gate = F.relu(net.squeeze(F.adaptive_avg_pool2d(x, 1)))
        return net.fc((x * torch.sigmoid(net.excite(gate))).mean((2, 3)))

    gate = {"squeeze": nn.Conv2d(6, 4, 1), "excite": nn.Conv2d(4, 6, 1)}
    return Net(call, conv=nn.Conv2d(2, 6, 3), **gate, fc=nn.Linear(6, 3))


def conv1d() -> nn.Module:
    """Convolution and pooling over time; input (2, 12)."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(net.conv1(x)), 2)
        return net.fc(F.adaptive_avg_pool1d(F.relu(net.conv2(x)), 3).flatten(1))

    convs = {"conv1": nn.Conv1d(2, 5, 3), "conv2": nn.Conv1d(5, 4, 3)}
    return Net(call, **convs, fc=nn.Linear(4 * 3, 3))


def conv3d() -> nn.Module:
    """Convolution, BatchNorm and pooling over volumes; input (1, 6, 6, 6)."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(net.norm(net.conv1(x))), 2)
        return net.fc(F.adaptive_avg_pool3d(F.relu(net.conv2(x)), 1).flatten(1))

    parts = {"conv1": nn.Conv3d(1, 5, 3, padding=1), "norm": nn.BatchNorm3d(5)}
    return Net(call, **parts, conv2=nn.Conv3d(5, 4, 3), fc=nn.Linear(4, 3))


def pooling() -> nn.Module:
    """One pooling layer after another; input (1, 12, 12)."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.leaky_relu(net.conv1(x)), 2)
        x = F.adaptive_avg_pool2d(x, 5)
        x = F.max_pool2d(F.elu(net.conv2(x)), 2, stride=1)
        return net.fc(F.adaptive_max_pool2d(x, 2).view(x.size(0), -1))

    convs = {
        f"conv{i + 1}": nn.Conv2d(*c, 3, padding=1)
        for i, c in ((0, (1, 5)), (1, (5, 4)))
    }
    return Net(call, **convs, fc=nn.Linear(4 * 4, 3))


def branches() -> nn.Module:
    """A layer split into halves that go their own ways; input (2, 5, 5)."""

    def call(net: Any, x: Tensor) -> Tensor:
        x = torch.tanh(net.inner[0](x)) * torch.sigmoid(net.inner[1](x))
        return net.fc(F.relu(net.last(x)).mean((2, 3)))

    inner = nn.ModuleList([nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3)])
    return Net(call, inner=inner, last=nn.ConvTranspose2d(4, 5, 2), fc=nn.Linear(5, 3))


def raw_parameters() -> nn.Module:
    """A two-layer network from bare parameters; input (3,)."""
    weights = {
        n: nn.Parameter(torch.randn(s)) for n, s in (("w1", (3, 6)), ("w2", (6, 2)))
    }
    return Net(lambda net, x: F.relu(x @ net.w1) @ net.w2, **weights)


def raw_block() -> nn.Module:
    """The same one level down, so that its parameters have a common prefix."""
    return Net(lambda net, x: net.block(x), block=raw_parameters())


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


def sequential() -> nn.Sequential:
    """Everything in one ``nn.Sequential``, dropout at rate 0; input (1, 6, 6)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 5, 3), nn.ELU(), nn.MaxPool2d(2), nn.Dropout(0.0)),
        *(nn.Flatten(), nn.Linear(20, 6), nn.GELU(), nn.Linear(6, 3)),
    )


ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv_flat": (ConvFlat, (1, 8, 8)),
    "batch_norm": (batch_norm, (2, 6, 6)),
    "depthwise": (depthwise, (2, 6, 6)),
    "depthwise_times_2": (lambda: depthwise(2), (2, 6, 6)),
    "grouped": (grouped, (2, 6, 6)),
    "residual": (residual, (2, 6, 6)),
    "dense_block": (dense_block, (2, 5, 5)),
    "concat_residual_flatten": (concat_residual_flatten, (1, 4, 4)),
    "squeeze_excite": (squeeze_excite, (2, 6, 6)),
    "conv1d": (conv1d, (2, 12)),
    "conv3d": (conv3d, (1, 6, 6, 6)),
    "pooling": (pooling, (1, 12, 12)),
    "branches": (branches, (2, 5, 5)),
    "sequential": (sequential, (1, 6, 6)),
    "raw_parameters": (raw_parameters, (3,)),
    "raw_block": (raw_block, (3,)),
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


def random_arrays(layout: Layout, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw dense arrays of the layout's shapes and dtypes, none of them 0."""
    generator = np.random.default_rng(seed)
    drawn = {t.name: generator.uniform(1, 100, t.shape) for t in layout.tensors}
    typed = {t.name: np.asarray(drawn[t.name]).astype(t.dtype) for t in layout.tensors}
    return layout.tie(typed)


def tensor(name: str, *owners: Any, macs: float = 0.0, **more: Any) -> TensorSpec:
    """Write a float32 tensor by hand: owners of each axis, or the length of one.

    With MACs, axis 1 takes units in.
    """
    shape = tuple(o if isinstance(o, int) else len(o) for o in owners)
    owned = tuple(None if isinstance(o, int) else np.array(o) for o in owners)
    more = {"dtype": "float32", "trainable": True, **more}
    axes = (1,) if macs else ()
    return TensorSpec(
        name, shape, owners=owned, input_axes=axes, macs_per_weight=macs, **more
    )


def mlp_layout() -> Layout:
    """Layout of Linear 3 -> 4 -> 2, written by hand: units are the 4 neurons."""
    units = range(4)
    tensors = (
        tensor("fc1.weight", units, 3, macs=1.0),
        tensor("fc1.bias", units),
        tensor("fc2.weight", 2, units, macs=1.0),
        tensor("fc2.bias", 2),
    )
    return Layout(tensors, (Group("fc1", 0, 4),))


def flat_layout() -> Layout:
    """Convolution of 2 filters, BatchNorm, flatten of 2 places, 3 neurons, 1 output.

    Units 0, 1 are filters and 2, 3, 4 neurons. A filter owns 2 columns of fc1.
    """
    filters, neurons = range(2), range(2, 5)
    counter = {"dtype": "int64", "trainable": False}
    tensors = (
        tensor("conv.weight", filters, 1, 1, 2, macs=2.0, normalized=True),
        tensor("norm.weight", filters),
        tensor("norm.bias", filters),
        tensor("norm.running_mean", filters, trainable=False),
        tensor("norm.num_batches_tracked", **counter),
        tensor("fc1.weight", neurons, [0, 0, 1, 1], macs=1.0),
        tensor("fc1.bias", neurons),
        tensor("fc2.weight", 1, neurons, macs=1.0),
    )
    return Layout(tensors, (Group("conv", 0, 2), Group("fc1", 2, 3)))


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
