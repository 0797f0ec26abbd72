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

from flwr_autoflip import Layout, Plan, shrink, trace
from flwr_autoflip.ledger.cost import count_macs, count_macs_thop, count_parameters

from ..methods import EVERYTHING
from ..records import Methods
from ..tasks import Scale, Task, find_task
from ..training import train
from .tables import markdown_table

VARIANTS = ("autoflip", "autoflip-paper", "autoflip-authors")
TIMES = ("step_seconds", "time_ratio")
WARM_UP, TURNS, SECONDS = 3, 30, 20.0
"""Turns not counted, turns at most, and seconds after which no turn starts."""
HEADER = (
    "task", "network", "parameters", "zeros among them", "MACs", "MACs, THOP",
    "parameters saved", "MACs saved", "MACs saved, THOP", "step time",
)  # fmt: skip

Sizes = dict[str, dict[str, Any]]


def size_table(methods: Methods, timed: Mapping[str, Any] | None = None) -> Sizes:
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
    table = {"dense": _measure([dense], task) | {"zeros": 0.0, "seeds": []}}
    for name, seeds in runs.items():
        zeros = [float(one.result["plan"]["zeros"]) for one in seeds]
        table[name] = _measure(built[name], task) | {
            "zeros": statistics.mean(zeros),
            "seeds": [one.seed for one in seeds],
        }
    if timed and _without_times(timed) == _without_times(table):
        return dict(timed)
    models = {"dense": dense} | {name: some[0] for name, some in built.items()}
    medians = _time_steps(models, task, scale.batch_size)
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
    return {
        name: {key: value for key, value in row.items() if key not in TIMES}
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


def _measure(models: Sequence[nn.Module], task: Task) -> dict[str, Any]:
    """Count parameters and MACs; means over the models."""
    counters = {"macs": count_macs, "thop_macs": count_macs_thop}
    counted: dict[str, Any] = {
        name: statistics.mean(count(model, task.example_input) for model in models)
        for name, count in counters.items()
    }
    return counted | {"parameters": statistics.mean(map(count_parameters, models))}


def _time_steps(
    models: Mapping[str, nn.Module], task: Task, batch_size: int
) -> dict[str, float]:
    """Time one training step of each model, in turns, on one thread.

    Gives median processor seconds, which other programs disturb less than the clock's.
    Single weights at zero are computed like any other, so a mask would not change them.
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
    shape = (size, *task.input_shape)
    if task.input_dtype == torch.long:
        texts = torch.randint(task.classes, shape, generator=generator)
        return TensorDataset(texts, texts.roll(-1, 1))
    images = torch.randn(shape, generator=generator)
    labels = torch.randint(task.classes, (size,), generator=generator)
    return TensorDataset(images, labels)


def size_markdown(tables: Mapping[str, Sizes]) -> str:
    """Write Table IV."""
    rows = []
    for task, table in tables.items():
        for name in ("dense", *VARIANTS):
            if name in table:
                title = "dense" if name == "dense" else EVERYTHING[name].title
                rows.append([task, title, *_size_row(table[name], table["dense"])])
    return markdown_table(HEADER, rows)


def _size_row(size: Mapping[str, Any], dense: Mapping[str, Any]) -> list[str]:
    kinds = ("parameters", "macs", "thop_macs")
    return [
        f"{size['parameters']:,.0f}",
        f"{size['zeros']:,.0f}",
        *(f"{size[kind] / 1e6:,.3f} M" for kind in kinds[1:]),
        *(f"{100 * (1 - size[kind] / dense[kind]):.1f} %" for kind in kinds),
        f"{size['time_ratio']:.2f}",
    ]
