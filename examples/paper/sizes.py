"""Table IV: what the deployable networks cost once they are really built."""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import shrink
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.ledger.cost import count_macs, count_macs_thop, count_parameters

from .results import Outcome
from .tasks import Scale, Task, find_task
from .training import train

VARIANTS = ("autoflip", "autoflip-paper", "autoflip-authors")
WARM_UP, TURNS, SECONDS = 3, 30, 20.0
"""Turns not counted, turns at most, and seconds after which no turn starts."""


Sizes = dict[str, dict[str, Any]]


def size_table(
    methods: Mapping[str, Sequence[Outcome]], timed: Mapping[str, Any] | None = None
) -> Sizes:
    """Build a task's part of Table IV.

    Parameters
    ----------
    methods : mapping of str to sequence of Outcome
        One task's runs.
    timed : mapping, optional
        Such a table from before: if its networks are of the same sizes, so are times.

    Returns
    -------
    dict of str to dict
        ``"dense"`` and the variants of AutoFLIP that have a run: means over seeds of
        parameters, zeros and MACs by two counters, and the time of a training step of
        the first seed's network over the dense one's. Empty without such a run.
    """
    runs = {name: methods[name] for name in VARIANTS if name in methods}
    if not runs:
        return {}
    first = next(iter(runs.values()))[0]
    task, scale = find_task(first.task), Scale(**first.config["settings"])
    dense = task.build(scale)
    layout = trace(dense, task.example_input)
    built = {
        name: [build_deployable(dense, layout, one.result["plan"]) for one in seeds]
        for name, seeds in runs.items()
    }
    table = {"dense": measure([dense], task) | {"zeros": 0.0, "seeds": []}}
    for name, seeds in runs.items():
        zeros = [float(one.result["plan"]["zeros"]) for one in seeds]
        table[name] = measure(built[name], task) | {
            "zeros": statistics.mean(zeros),
            "seeds": [one.seed for one in seeds],
        }
    if timed and _without_times(timed) == _without_times(table):
        return dict(timed)
    models = {"dense": dense} | {name: some[0] for name, some in built.items()}
    medians = time_steps(models, task, scale.batch_size)
    for name, seconds in medians.items():
        table[name]["step_seconds"] = seconds
        table[name]["time_ratio"] = seconds / medians["dense"]
    return table


def read_timed(path: Path) -> dict[str, Sizes]:
    """Give the tables that a report's ``results.json`` holds; empty without one."""
    if not path.exists():
        return {}
    timed: dict[str, Sizes] = json.loads(path.read_text())["table_iv"]
    return timed


def _without_times(table: Mapping[str, Mapping[str, Any]]) -> Sizes:
    times = ("step_seconds", "time_ratio")
    return {
        name: {key: value for key, value in row.items() if key not in times}
        for name, row in table.items()
    }


def build_deployable(
    dense: nn.Module, layout: Layout, plan: Mapping[str, Any]
) -> nn.Module:
    """Build a network of the plan's sizes: costs do not depend on *which* units stay.

    Raises
    ------
    ValueError
        If it has not the parameters that the run reported.
    """
    keep = {name: np.arange(count) for name, count in plan["units"].items()}
    small = shrink(dense, Plan(layout, keep))
    reported = plan["parameters"] + plan["zeros"]
    if count_parameters(small) != reported:
        raise ValueError(
            f"the run reported {reported} parameters, zeros included, its units make "
            f"{count_parameters(small)}; the model has changed since."
        )
    return small


def measure(models: Sequence[nn.Module], task: Task) -> dict[str, Any]:
    """Count parameters and MACs; means over the models."""
    counters = {"macs": count_macs, "thop_macs": count_macs_thop}
    counted: dict[str, Any] = {
        name: statistics.mean(count(model, task.example_input) for model in models)
        for name, count in counters.items()
    }
    return counted | {"parameters": statistics.mean(map(count_parameters, models))}


def time_steps(
    models: Mapping[str, nn.Module], task: Task, batch_size: int
) -> dict[str, float]:
    """Time one training step of each model, in turns, on one thread.

    Returns
    -------
    dict of str to float
        Median processor seconds, which other programs disturb less than the clock's.
        Single weights at zero are computed like any other, so a mask would not change
        them.
    """
    batch = _random_batch(task, batch_size)
    times: dict[str, list[float]] = {name: [] for name in models}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    for turn in range(WARM_UP + TURNS):
        if turn > 2 * WARM_UP and time.perf_counter() - begin > SECONDS:
            break
        for name, model in models.items():
            start = time.process_time()
            train(model, batch, 1, batch_size, lr=1e-4)
            if turn >= WARM_UP:
                times[name].append(time.process_time() - start)
    torch.set_num_threads(threads)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _random_batch(task: Task, size: int) -> TensorDataset:
    """Make inputs and labels; a model of texts has a label at every position."""
    generator = torch.Generator().manual_seed(0)
    if task.input_dtype == torch.long:
        shape = (size, *task.input_shape)
        texts = torch.randint(task.classes, shape, generator=generator)
        return TensorDataset(texts, texts.roll(-1, 1))
    images = torch.randn(size, *task.input_shape, generator=generator)
    return TensorDataset(
        images, torch.randint(task.classes, (size,), generator=generator)
    )
