"""How fast values are cut out and put back, as a ratio to copying them.

``python -m examples.benchmarks.codec``: bytes of kept values a second over
``numpy.copyto``'s, in turns, medians, one core. ``pack`` is the server's cut,
``unpack`` a node's tensors of the values that came (checked), ``expand`` the dense
model. Units are drawn at random, without runs of neighbours: the hardest case.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from flwr_autoflip import Plan, expand, trace
from flwr_autoflip.graph.pack import pack, unpack_small
from flwr_autoflip.graph.shrink import arrays_of

from .server import MODELS

RATIOS = {"1/2": 0.5**0.5, "1/4": 0.5}
"""About so many of the parameters are kept -> units of each group."""


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


def measure(name: str, kept: str, repeats: int) -> dict[str, float]:
    """Measure one model at one size; give speeds over copying's."""
    build, example = MODELS[name]
    model = build()
    layout, arrays = trace(model, example), arrays_of(model)
    rng = np.random.default_rng(0)
    keep = {
        g.name: np.sort(rng.permutation(g.size)[: max(1, int(RATIOS[kept] * g.size))])
        for g in layout.groups
    }
    plan = Plan(layout, keep)
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
    return {key: spent["copy"] / took for key, took in spent.items() if key != "copy"}


def main() -> None:
    """Measure all models and sizes; print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        for kept in RATIOS:
            found = measure(name, kept, options.repeats)
            ratios = "  ".join(f"{key} {ratio:.2f}" for key, ratio in found.items())
            print(f"{name}, {kept} kept, of copying's speed: {ratios}")


if __name__ == "__main__":
    main()
