"""What a device feels: time and memory of shrunk models over the dense one's.

``python -m examples.benchmarks.shrink``: dense and shrunk take turns in one run,
medians are compared. Models of images, dense ones too, are in torch's channels-last
format, which suits a CPU best. Memory (Linux) is the peak of a process of its own that
builds the model, loads it and trains one step, less what an empty process with the
same imports takes.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.models as torchvision
from torch import nn

from flwr_autoflip import Plan, trace
from flwr_autoflip.graph.codec import (
    decode_layout,
    decode_plan,
    encode_layout,
    encode_plan,
)
from flwr_autoflip.graph.plan import dense_plan
from flwr_autoflip.graph.shrink import build_small, hold_mask
from flwr_autoflip.methods import L1

RATIOS = (1.0, 0.5, 0.25)
"""Of the MACs, all groups alike."""


class SixLayerCnn(nn.Sequential):
    """Four convolutions and two linear layers for 28x28 images."""

    def __init__(self) -> None:
        def block(into: int, out: int, *more: nn.Module) -> list[nn.Module]:
            return [nn.Conv2d(into, out, 3, padding=1), nn.ReLU(), *more]

        super().__init__(
            *block(1, 32),
            *block(32, 64, nn.MaxPool2d(2)),
            *block(64, 128),
            *block(128, 256, nn.MaxPool2d(2)),
            nn.Flatten(),
            nn.Linear(256 * 49, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        )


class CharLstm(nn.Module):
    """Next character: embedding, two LSTM layers of 256, 80 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(80, 8)
        self.lstm = nn.LSTM(8, 256, num_layers=2, batch_first=True)
        self.fc = nn.Linear(256, 80)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, 80)`` characters to logits ``(batch, 80)``."""
        return self.fc(self.lstm(self.embed(x))[0][:, -1])


def resnet18() -> nn.Module:
    """Torchvision's, 100 classes."""
    return torchvision.resnet18(num_classes=100)


def efficientnet_b3() -> nn.Module:
    """Torchvision's, 10 classes."""
    return torchvision.efficientnet_b3(num_classes=10)


Case = tuple[Callable[[], nn.Module], tuple[int, ...], int]
CASES: dict[str, Case] = {  # model, shape of an example, batch
    "six-layer CNN": (SixLayerCnn, (1, 28, 28), 32),
    "ResNet-18, 64x64": (resnet18, (3, 64, 64), 32),
    "EfficientNet-B3, 96x96": (efficientnet_b3, (3, 96, 96), 16),
    "EfficientNet-B3, 32x32": (efficientnet_b3, (3, 32, 32), 16),
    "two-layer LSTM": (CharLstm, (80,), 32),
}


def make_batch(shape: tuple[int, ...], count: int) -> torch.Tensor:
    """Random images, or characters where an example has one axis."""
    if len(shape) == 1:
        return torch.randint(0, 80, (count, *shape))
    return torch.randn(count, *shape).to(memory_format=torch.channels_last)


def make_plan(name: str, ratio: float) -> Plan:
    """Keep as many units as make this ratio of the MACs; everything at 1."""
    model_fn, shape, _ = CASES[name]
    layout = trace(model_fn(), make_batch(shape, 1))
    if ratio == 1:
        return dense_plan(layout)
    scores = {g.name: np.linspace(1, 0, g.size) for g in layout.groups}
    return L1(threshold=f"even-macs:{ratio}").choose(layout, scores)


def train_step(model: nn.Module, batch: torch.Tensor, labels: torch.Tensor) -> None:
    """One step of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    F.cross_entropy(model(batch), labels).backward()
    optimizer.step()


def ready(name: str, plan: Plan) -> nn.Module:
    """Build a plan's model; its values stand for those that come from the server.

    Denormal ones would slow it down.
    """
    model = build_small(CASES[name][0], plan)
    with torch.no_grad():
        for tensor_name, tensor in model.state_dict().items():
            if tensor.dim() > 1:  # keeps activations' size from layer to layer
                tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
            elif tensor.is_floating_point():
                scale = tensor_name.endswith(("weight", "running_var"))
                tensor.fill_(float(scale))
    return model.to(memory_format=torch.channels_last)


def medians(calls: dict[Any, Callable[[], object]], repeats: int) -> dict[Any, float]:
    """Time calls in turns; give medians of seconds."""
    times: dict[Any, list[float]] = {key: [] for key in calls}
    for turn in range(repeats + 2):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 2:
                times[key].append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in times.items()}


def measure_times(name: str, plans: dict[float, Plan], steps: int) -> dict[Any, float]:
    """Median seconds of ("train" or "infer", ratio), models in turns."""
    _, shape, count = CASES[name]
    batch, labels = make_batch(shape, count), torch.randint(0, 10, (count,))
    calls: dict[Any, Callable[[], object]] = {}
    for ratio, plan in plans.items():
        model = ready(name, plan)

        def train(model: nn.Module = model) -> None:
            train_step(model.train(), batch, labels)

        @torch.no_grad()
        def infer(model: nn.Module = model) -> torch.Tensor:
            return model.eval()(batch)

        calls |= {("train", ratio): train, ("infer", ratio): infer}
    return medians(calls, steps)


def measure_mask_cost(name: str) -> float:
    """Time of a training step with half the weights masked, over without."""
    plan, (_, shape, count) = make_plan(name, 0.5), CASES[name]
    rng = np.random.default_rng(0)
    trainable = [spec for spec in plan.layout.tensors if spec.trainable]
    mask = {spec.name: rng.random(spec.shape) > 0.5 for spec in trainable}
    plan = replace(plan, mask=mask)
    model, batch = ready(name, plan), make_batch(shape, count)
    labels = torch.randint(0, 10, (count,))
    spent = {"held": 0.0, "free": 0.0}
    for _ in range(40):
        for key in spent:
            with hold_mask(model, plan) if key == "held" else nullcontext():
                start = time.perf_counter()
                train_step(model, batch, labels)
                spent[key] += time.perf_counter() - start
    return spent["held"] / spent["free"]


# --- Memory ---


def measure_memory(name: str, plan: Plan) -> int:
    """Peak KiB of building, loading and one step, in a process of its own."""
    text = f"{encode_layout(plan.layout).hex()}\n{encode_plan(plan).hex()}\n"

    def peak(mode: str) -> int:
        command = [sys.executable, "-m", __spec__.name, "--child", name, mode]
        done = subprocess.run(
            command, input=text, check=True, capture_output=True, text=True
        )
        return int(done.stdout)

    return peak("shrink") - peak("idle")


def child(name: str, mode: str) -> None:
    """Print this process's peak resident memory in KiB, after one training step."""
    torch.set_num_threads(1)
    _, shape, count = CASES[name]
    layout = decode_layout(bytes.fromhex(sys.stdin.readline().strip()))
    plan = decode_plan(bytes.fromhex(sys.stdin.readline().strip()), layout)
    if mode == "shrink":
        model = ready(name, plan)
    else:  # imports, and a step of next to nothing
        model, shape = nn.Sequential(nn.Flatten(), nn.Linear(1, 10)), (1, 1, 1)
    train_step(model, make_batch(shape, count), torch.zeros(count).long())
    # Not getrusage: its peak is inherited from the parent process.
    status = Path("/proc/self/status").read_text()
    print(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]


def main() -> None:
    """Measure every case and print ratios over the dense model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    for name in options.cases:
        plans = {ratio: make_plan(name, ratio) for ratio in RATIOS}
        memory = {ratio: measure_memory(name, plan) for ratio, plan in plans.items()}
        for threads in options.threads:
            torch.set_num_threads(threads)
            times = measure_times(name, plans, options.steps)
            for ratio in RATIOS[1:]:
                macs = plans[ratio].macs / plans[1.0].macs
                train, infer = (
                    times[kind, 1.0] / times[kind, ratio] for kind in ("train", "infer")
                )
                print(
                    f"{name}, {threads} threads, {macs:.2f} of the MACs: training "
                    f"{train:.2f}x as fast, inference {infer:.2f}x, memory "
                    f"{memory[ratio] / memory[1.0]:.2f}",
                    flush=True,
                )
        torch.set_num_threads(1)
        print(f"{name}: a step with masks takes {measure_mask_cost(name):.2f} of one")


if __name__ == "__main__":
    main()
