"""What a device feels: time and memory of shrunk models against dense, as ratios.

Dense and shrunk take turns in one run; medians are compared. Models of images, dense
ones too, are in torch's channels-last format, which suits a CPU best. Memory is the
peak of a process of its own that builds the model, loads it and trains one step, less
what an empty process with the same imports takes.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flwr_autoflip.methods.policy import unit_plan
from rich.console import Console
from rich.table import Table
from torch import nn

from flwr_autoflip.graph.codec import (
    decode_layout,
    decode_plan,
    encode_layout,
    encode_plan,
)
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.shrink import (
    arrays_of,
    build_small,
    hold_mask,
    load_arrays_inplace,
)
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.methods.threshold import MacShare


class SixLayerCnn(nn.Sequential):
    """Four convolutions and two linear layers for 28x28 images."""

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256, 512)) -> None:
        def block(into: int, out: int, *more: nn.Module) -> list[nn.Module]:
            return [nn.Conv2d(into, out, 3, padding=1), nn.ReLU(), *more]

        a, b, c, d, e = widths
        super().__init__(
            *block(1, a),
            *block(a, b, nn.MaxPool2d(2)),
            *block(b, c),
            *block(c, d, nn.MaxPool2d(2)),
            nn.Flatten(),
            nn.Linear(d * 49, e),
            nn.ReLU(),
            nn.Linear(e, 10),
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
    from torchvision.models import resnet18 as model

    return model(num_classes=100)


def efficientnet_b3() -> nn.Module:
    """Torchvision's, 10 classes."""
    from torchvision.models import efficientnet_b3 as model

    return model(num_classes=10)


Case = tuple[Callable[[], nn.Module], tuple[int, ...], int]
CASES: dict[str, Case] = {  # model, shape of an example, batch
    "six-layer CNN": (SixLayerCnn, (1, 28, 28), 32),
    "ResNet-18": (resnet18, (3, 64, 64), 32),
    "EfficientNet-B3": (efficientnet_b3, (3, 96, 96), 16),
    "EfficientNet-B3, 32x32": (efficientnet_b3, (3, 32, 32), 16),
    "two-layer LSTM": (CharLstm, (80,), 32),
}


def make_batch(shape: tuple[int, ...], count: int) -> torch.Tensor:
    """Random images, or characters where an example has one axis."""
    if len(shape) == 1:
        return torch.randint(0, 80, (count, *shape))
    return torch.randn(count, *shape).to(memory_format=torch.channels_last)


def make_plan(name: str, share: float) -> Plan:
    """Keep an even share of units at this share of MACs; everything at 1."""
    model_fn, shape, _ = CASES[name]
    layout = trace(model_fn(), make_batch(shape, 1))
    if share == 1:
        return dense_plan(layout)
    scores = {g.name: np.linspace(1, 0, g.size) for g in layout.groups}
    return unit_plan(layout, scores, MacShare(share, exponent=np.inf))


def train_step(model: nn.Module, batch: torch.Tensor, labels: torch.Tensor) -> None:
    """One step of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    F.cross_entropy(model(batch), labels).backward()
    optimizer.step()


def ready(name: str, plan: Plan) -> nn.Module:
    """Build a plan's model with plausible values."""
    return filled(build_small(CASES[name][0], plan))


def filled(model: nn.Module) -> nn.Module:
    """Give a model that :func:`build_small` made plausible values, in place.

    They stand for those that come from the server; denormal ones would slow it down.
    """
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dim() > 1:  # keeps activations' size from layer to layer
                tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
            elif tensor.is_floating_point():
                tensor.fill_(float(name.endswith(("weight", "running_var"))))
    return model.to(memory_format=torch.channels_last)


def measure_times(name: str, plans: dict[float, Plan], steps: int) -> dict[str, Any]:
    """Median seconds of a training step and of inference, models in turns."""
    _, shape, count = CASES[name]
    batch, labels = make_batch(shape, count), torch.randint(0, 10, (count,))
    models = {share: ready(name, plan) for share, plan in plans.items()}
    times: dict[str, dict[float, list[float]]] = {
        kind: {share: [] for share in models} for kind in ("train", "infer")
    }
    for step in range(steps + 2):
        for share, model in models.items():
            start = time.perf_counter()
            train_step(model.train(), batch, labels)
            middle = time.perf_counter()
            with torch.no_grad():
                model.eval()(batch)
            end = time.perf_counter()
            if step >= 2:
                times["train"][share].append(middle - start)
                times["infer"][share].append(end - middle)
    return {
        kind: {share: statistics.median(values) for share, values in by_share.items()}
        for kind, by_share in times.items()
    }


def measure_build(name: str, plan: Plan) -> float:
    """Median seconds to build and load the small model, for the first time."""
    arrays = arrays_of(ready(name, plan))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        model = build_small(lambda: CASES[name][0](), plan)  # no skeleton of before
        load_arrays_inplace(model, arrays)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_mask_cost(name: str) -> float:
    """Time of a training step with half the weights masked, over without."""
    plan, (_, shape, count) = make_plan(name, 0.5), CASES[name]
    generator = np.random.default_rng(0)
    mask = {
        spec.name: generator.random(spec.shape) > 0.5
        for spec in plan.layout.tensors
        if spec.trainable
    }
    plan = Plan(plan.layout, plan.keep, mask)
    model, batch = ready(name, plan), make_batch(shape, count)
    labels = torch.randint(0, 10, (count,))
    times: tuple[list[float], list[float]] = ([], [])
    torch.set_num_threads(1)
    for _ in range(40):
        for held, seconds in zip(
            (nullcontext, lambda: hold_mask(model, plan)), times, strict=True
        ):
            with held():
                start = time.perf_counter()
                train_step(model, batch, labels)
                seconds.append(time.perf_counter() - start)
    return statistics.median(times[1]) / statistics.median(times[0])


def measure_memory(name: str, plan: Plan, how: str = "shrink") -> int:
    """Peak bytes of building, loading and one step, in a process of its own."""
    text = f"{encode_layout(plan.layout).hex()}\n{encode_plan(plan).hex()}\n"

    def peak(mode: str) -> int:
        command = [sys.executable, __file__, "--child", name, mode]
        done = subprocess.run(
            command, input=text, check=True, capture_output=True, text=True
        )
        return int(done.stdout)

    return 1024 * (peak(how) - peak("idle"))


def child(name: str, how: str) -> None:
    """Print this process's peak resident memory in KiB, after one training step."""
    torch.set_num_threads(1)
    _, shape, count = CASES[name]
    layout = decode_layout(bytes.fromhex(sys.stdin.readline().strip()))
    plan = decode_plan(bytes.fromhex(sys.stdin.readline().strip()), layout)
    if how == "shrink":
        model = ready(name, plan)
    elif how == "by-hand":
        model = filled(SixLayerCnn([len(kept) for kept in plan.keep.values()]))
    else:  # "idle": imports, and a step of next to nothing
        model, shape = nn.Sequential(nn.Flatten(), nn.Linear(1, 10)), (1, 1, 1)
    batch = make_batch(shape, count)
    train_step(model, batch, torch.zeros(count).long())
    # Not getrusage: its peak is inherited from the parent process.
    status = Path("/proc/self/status").read_text()
    print(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def main() -> None:
    """Measure every case and print ratios against the dense model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/shrink.json"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    rows = []
    for name in CASES:
        plans = {share: make_plan(name, share) for share in (1.0, 0.5, 0.25)}
        memory = {share: measure_memory(name, plan) for share, plan in plans.items()}
        for threads in options.threads:
            torch.set_num_threads(threads)
            times = measure_times(name, plans, options.steps)
            for share in (0.5, 0.25):
                macs = plans[share].macs / plans[1.0].macs
                row = {"model": name, "threads": threads, "macs_ratio": macs}
                for kind in ("train", "infer"):
                    row[f"{kind}_speedup"] = times[kind][1.0] / times[kind][share]
                    row[f"{kind}_share"] = row[f"{kind}_speedup"] * macs
                row["memory_ratio"] = memory[share] / memory[1.0]
                row["build_seconds"] = measure_build(name, plans[share])
                rows.append(row)
    plan = make_plan("six-layer CNN", 0.25)
    by_hand = measure_memory("six-layer CNN", plan, "by-hand")
    shrunk = measure_memory("six-layer CNN", plan)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)
    for name in ("six-layer CNN", "two-layer LSTM"):
        cost = measure_mask_cost(name)
        print(f"a step with single-weight masks over one without, {name}: {cost:.2f}")
    print(f"peak memory, shrunk over the same model by hand: {shrunk / by_hand:.2f}")


HEADINGS = (
    "model",
    "threads",
    "MACs",
    "train",
    "of ideal",
    "infer",
    "of ideal",
    "memory",
    "build s",
)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table; "of ideal" is the speed-up over what MACs alone promise."""
    table = Table()
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        table.add_row(
            row["model"],
            str(row["threads"]),
            f"{row['macs_ratio']:.2f}",
            f"{row['train_speedup']:.2f}x",
            f"{row['train_share']:.2f}",
            f"{row['infer_speedup']:.2f}x",
            f"{row['infer_share']:.2f}",
            f"{row['memory_ratio']:.2f}",
            f"{row['build_seconds']:.2f}",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
