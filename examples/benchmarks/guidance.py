"""Guidance on disk: what bits do to plans, how fast plans are, what stays resident.

Bits: explorers train a small FEMNIST-CNN on drawn pictures; the share of units on which
plans from rounded guidance agree with plans from float32. Speed: a plan from K stored
reports, checks included, as a ratio to summing the same bytes through ``numpy.memmap``;
seconds are of the processor, in turns, medians. Memory: the highest resident size of a
process that stores many nodes' reports and plans.
"""

import argparse
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from flwr_autoflip.graph.codec import layout_digest
from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.methods.guidance import Normalization, Report, deviation
from flwr_autoflip.server.store import ReportStore
from flwr_autoflip.wire.encoding import from_half, to_half

from ..paper.models import FemnistCNN
from .guidance_memory import Row, draw, make_plan

EXAMPLE = torch.zeros(1, 1, 28, 28)
NORMALIZATIONS: tuple[Normalization, ...] = ("layer", "client")


# --- Bits ---


def explore(nodes: int, width: float, steps: int = 10) -> tuple[Layout, list[Report]]:
    """Let nodes train on pictures of their own; give their deviations."""
    torch.manual_seed(0)
    model = FemnistCNN(62, width)
    start = {n: v.detach().clone() for n, v in model.named_parameters()}
    patterns = torch.randn(62, 1, 28, 28)
    reports = []
    for _ in range(nodes):
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        classes = torch.randperm(62)[:10]  # few classes a node
        for _ in range(steps):
            labels = classes[torch.randint(10, (16,))]
            pictures = patterns[labels] + torch.randn(16, 1, 28, 28)
            optimizer.zero_grad()
            cross_entropy(model(pictures), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        ends = {n: v.detach().numpy() for n, v in model.named_parameters()}
        reports.append({n: deviation(start[n].numpy(), ends[n]) for n in start})
    return trace(model, EXAMPLE), reports


def in_16_bits(roots: np.ndarray) -> np.ndarray:
    """Round sizes of updates as files do."""
    return from_half(*to_half(roots))


def in_8_bits(roots: np.ndarray) -> np.ndarray:
    """Round sizes of updates to 255 levels of the tensor's largest."""
    step = roots.max() / 255 or 1.0
    return (np.round(roots / step) * step).astype(np.float32)


def compare_bits(nodes: int, width: float) -> list[Row]:
    """Count the units that rounded guidance decides as float32 does."""
    layout, reports = explore(nodes, width)
    rows = []
    for normalization in NORMALIZATIONS:
        for share in (0.25, 0.5, 0.75):
            exact = make_plan(layout, reports, normalization, share)
            for bits, rounded in ((16, in_16_bits), (8, in_8_bits)):
                kept = [
                    {n: np.square(rounded(np.sqrt(v))) for n, v in report.items()}
                    for report in reports
                ]
                plan = make_plan(layout, kept, normalization, share)
                equal = float((plan.alive == exact.alive).mean())
                row = {"normalization": normalization, "dropped": share, "bits": bits}
                rows.append(row | {"equal": round(equal, 4), "units": layout.num_units})
    return rows


# --- Speed ---


def seconds_of(call: Callable[[], object]) -> float:
    """Measure one call, in seconds of the processor."""
    start = time.process_time()
    call()
    return time.process_time() - start


def sum_bytes(paths: Sequence[Path], size: int) -> float:
    """Read ``size`` halves a file and sum them in float64, NumPy's fastest way."""
    maps = (np.memmap(p, "<f2", "r", p.stat().st_size - 2 * size) for p in paths)
    return sum(float(halves.sum(dtype=np.float64)) for halves in maps)


def compare_speed(width: float, nodes: int, repeats: int) -> list[Row]:
    """Time plans from stored reports and sums of the same bytes, in turns."""
    layout = trace(FemnistCNN(62, width), EXAMPLE)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = ReportStore(layout_digest(layout), Path(folder))
        for node in range(nodes):
            assert store.add(node, draw(layout, rng))
        paths = sorted(Path(folder).iterdir())
        size = sum(t.size for t in layout.tensors if t.trainable)
        calls: dict[str, Callable[[], object]] = {}
        calls["sum"] = lambda: sum_bytes(paths, size)
        for key in NORMALIZATIONS:
            calls[key] = lambda key=key: make_plan(layout, store.of(range(nodes)), key)
        times: dict[str, list[float]] = {key: [] for key in calls}
        for turn in range(repeats + 1):
            for key, call in calls.items():
                spent = seconds_of(call)
                if turn:  # the first fills caches
                    times[key].append(spent)
    medians = {key: statistics.median(values) for key, values in times.items()}
    row = {"parameters": layout.num_parameters, "nodes": nodes}
    return [
        {
            **row,
            "normalization": key,
            "seconds": round(medians[key], 4),
            "memmap_seconds": round(medians["sum"], 4),
            "speed": round(medians["sum"] / medians[key], 3),
        }
        for key in NORMALIZATIONS
    ]


# --- Memory ---


def measure_memory(nodes: int, width: float, normalization: str) -> Row:
    """Store nodes' reports and plan from all of them, in a fresh process."""
    layout = trace(FemnistCNN(62, width), EXAMPLE)
    command = [sys.executable, "-m", "examples.benchmarks.guidance_memory"]
    command += [str(nodes), normalization]
    done = subprocess.run(
        command, input=pickle.dumps(layout), capture_output=True, check=True
    )
    row: Row = json.loads(done.stdout)
    return row


def show(title: str, rows: Sequence[Row]) -> None:
    """Print rows as a table."""
    print(f"\n{title}\n" + "".join(f"{name:>16}" for name in rows[0]))
    for row in rows:
        print("".join(f"{value:>16}" for value in row.values()), flush=True)


def main() -> None:
    """Measure; print tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="13.18M parameters, too")
    parser.add_argument("--nodes", type=int, default=660, help="nodes in the store")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {"bits": compare_bits(10, 0.125)}
    show("units decided as by float32", found["bits"])
    sizes = [(0.125, 20), (0.25, 20), (0.5, 20), (0.25, 10), (0.25, 40)]
    sizes += [(1.0, 20)] if options.full else []
    found["speed"] = [
        row for size in sizes for row in compare_speed(*size, options.repeats)
    ]
    show("plans from stored reports", found["speed"])
    width = 1.0 if options.full else 0.125
    found["memory"] = [
        measure_memory(options.nodes, width, key) for key in NORMALIZATIONS
    ]
    show(f"a store of {options.nodes} nodes", found["memory"])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "guidance.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
