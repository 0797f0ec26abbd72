"""A process that stores many nodes' reports and plans: how much of it is resident.

Started by ``examples.benchmarks.guidance``, which traces the model and hands over its
layout: tracing and torchvision are not what is measured.
"""

import json
import pickle
import re
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr_autoflip.methods.statistics import Running
from flwr_autoflip.server.store import ReportStore

from flwr_autoflip.graph.codec import layout_digest
from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.methods import AutoFlipPolicy
from flwr_autoflip.methods.guidance import Normalization, Report
from flwr_autoflip.methods.threshold import Quantile

Row = dict[str, Any]


def make_plan(
    layout: Layout,
    reports: Sequence[Report],
    normalization: Normalization,
    share: float = 0.5,
) -> Plan:
    """Drop a share of units by the mean guidance of their parameters."""
    return AutoFlipPolicy(Quantile(share), normalization)(0, layout, {}, reports)


def draw(layout: Layout, rng: np.random.Generator) -> Report:
    """Draw deviations of all trainable tensors."""
    return {
        t.name: np.square(rng.standard_normal(t.shape, np.float32) * 1e-3)
        for t in layout.tensors
        if t.trainable
    }


def resident() -> float:
    """Give the highest resident size so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, getrusage's also counts the process that began us
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(found[1]) * 1024 / 1e6 if found else 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def fill_and_plan(nodes: int, layout: Layout, normalization: Normalization) -> Row:
    """Store nodes' reports and plan from all of them."""
    store = ReportStore(
        layout_digest(layout), running=Running(normalization == "client", True)
    )
    rng = np.random.default_rng(0)
    report, before = draw(layout, rng), resident()
    start = time.perf_counter()
    for node in range(nodes):
        _, values = max(report.items(), key=lambda item: item[1].size)
        values.reshape(-1)[node] += 1.0  # no two files alike
        assert store.add(node, report), store.fault
    built, after_build = time.perf_counter() - start, resident()
    start = time.perf_counter()
    make_plan(layout, store.everyone(), normalization)
    planned = time.perf_counter() - start
    return {
        "parameters": layout.num_parameters,
        "nodes": nodes,
        "normalization": normalization,
        "before_mb": round(before),
        "stored_mb": round(after_build),
        "planned_mb": round(resident()),
        "dense_mb": round(4 * layout.num_parameters / 1e6, 1),
        "build_seconds": round(built, 1),
        "plan_seconds": round(planned, 2),
    }


if __name__ == "__main__":
    number, choice = sys.argv[1:]
    layout = pickle.load(sys.stdin.buffer)
    print(json.dumps(fill_and_plan(int(number), layout, choice)))  # type: ignore[arg-type]
