"""How fast values are cut out and put back, and how long plans' bytes are.

Speed: bytes of kept values a second, as a share of copying those bytes with
``numpy.copyto``, in turns, medians, one core. ``pack`` is the server's cut, ``unpack``
a node's tensors of the values that came (checked), ``expand`` the dense model.
Length: an encoded plan over the entropy bound, how many units stay in each group
included; element masks in bits an element.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from math import comb, log2
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr_autoflip.methods.policy import unit_plan

from flwr_autoflip.graph.codec import encode_plan
from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.pack import expand, pack, unpack_small
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.methods.threshold import parse_threshold

from .server import MODELS


def seconds(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Time calls in turns; give medians."""
    times: dict[str, list[float]] = {key: [] for key in calls}
    for turn in range(repeats + 1):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:  # the first fills caches
                times[key].append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in times.items()}


def bound(plan: Plan) -> float:
    """Bits that plans of so many units a group take at least, the counts included."""
    return sum(
        log2((group.size + 1) * comb(group.size, len(plan.keep[group.name])))
        for group in plan.layout.groups
    )


def random_plan(layout: Layout, threshold: str, rng: np.random.Generator) -> Plan:
    """Keep random units: no runs of neighbours, the hardest case to cut."""
    scores = {group.name: rng.random(group.size) for group in layout.groups}
    return unit_plan(layout, scores, parse_threshold(threshold))


def measure(name: str, threshold: str, repeats: int) -> dict[str, Any]:
    """Measure one model at one compression."""
    build, example = MODELS[name]
    model = build()
    layout, arrays = trace(model, example), arrays_of(model)
    rng = np.random.default_rng(0)
    plan = random_plan(layout, threshold, rng)
    values = pack(arrays, plan)
    target = np.empty_like(values)
    spent = seconds(
        {
            "copy": lambda: np.copyto(target, values),
            "pack": lambda: pack(arrays, plan),
            "unpack": lambda: unpack_small(values, plan),
            "expand": lambda: expand(arrays, values, plan),
        },
        repeats,
    )
    both = 2 * spent["copy"] / (spent["pack"] + spent["unpack"])
    half = {t.name: rng.random(t.shape) < 0.5 for t in layout.tensors if t.trainable}
    masked = Plan(layout, plan.keep, half)
    elements = len(encode_plan(masked)) - len(encode_plan(plan))
    return {
        "model": name,
        "kept": threshold,
        "values": plan.num_values,
        **{key: round(spent["copy"] / spent[key], 3) for key in list(spent)[1:]},
        "pack_and_unpack": round(both, 3),
        "plan_bytes": len(encode_plan(plan)),
        "over_bound": round(8 * len(encode_plan(plan)) / bound(plan), 3),
        "bits_an_element": round(8 * elements / plan.num_parameters, 4),
    }


def main() -> None:
    """Measure all models and sizes; print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measure(name, threshold, options.repeats)
        for name in options.models
        for threshold in ("2x", "4x")
    ]
    print("".join(f"{key:>16}" for key in rows[0]))
    for row in rows:
        print("".join(f"{value:>16}" for value in row.values()))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "codec.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
