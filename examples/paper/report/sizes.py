"""Table IV: what the deployable networks cost once they are really built."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from flwr_autoflip import Layout, Plan, shrink, trace
from flwr_autoflip.ledger.cost import count_macs, count_parameters

from ...thop_macs import count_macs_thop
from ..methods import EVERYTHING
from ..records import Methods
from ..tasks import Scale, Task, find_task
from .tables import markdown_table

VARIANTS = ("autoflip", "autoflip-paper", "autoflip-authors")
HEADER = (
    "task", "network", "parameters", "zeros among them", "MACs", "MACs, THOP",
    "parameters saved", "MACs saved", "MACs saved, THOP",
)  # fmt: skip

Sizes = dict[str, dict[str, Any]]


def size_table(methods: Methods) -> Sizes:
    """Build a task's part of Table IV.

    Parameters
    ----------
    methods : mapping of str to sequence of Outcome
        One task's runs.

    Returns
    -------
    dict of str to dict
        ``"dense"`` and the variants of AutoFLIP that have a run: means over seeds of
        parameters, zeros and MACs by two counters. Empty without such a run.
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
    return table


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
    ]
