"""The page's look inside the model: units kept, and the importance that chose them."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..amounts import percent
from .charts import Chart, Values, heat_chart, strip
from .html import card, escape, grid, legend, section
from .runs import Run, units_kept


class Heat(NamedTuple):
    """A row of a heat map: values of colours, what they show, a figure behind them."""

    values: Mapping[str, Values]
    words: str
    last: str


Heats = Callable[[Run], dict[str, Heat]]
"""Gives a run's rows by their groups' names."""


def units_heat(run: Run) -> dict[str, Heat]:
    """Give each group's ratios of units kept, over the rounds."""
    found, dense = {}, run.dense_units
    for name, counts in units_kept(run).items():
        whole = max(1, dense.get(name, max(counts)))
        kept = np.array(counts) / whole
        words = f"{name}: {percent(kept.min())} to {percent(kept.max())} of units kept"
        last = f"{counts[-1]} of {whole}" if name in dense else str(counts[-1])
        found[name] = Heat({"kept": kept}, words, last)
    return found


def importance_heat(run: Run) -> dict[str, Heat]:
    """Give each group's units by importance, kept and pruned, of the first plan."""
    rows = (row["importance"] for row in run.plans if row.get("importance"))
    found = {}
    for name, counts in next(rows, {}).items():
        kept, pruned = (np.array(counts[key], float) for key in ("kept", "pruned"))
        most = max(1.0, kept.max(), pruned.max())
        words = f"{name}: {kept.sum():.0f} units kept, {pruned.sum():.0f} pruned"
        values = {"kept": kept / most, "pruned": pruned / most}
        found[name] = Heat(values, words, f"to {counts['top']:.2g}")
    return found


def units(runs: Sequence[Run]) -> str:
    """Draw the units that each group of layers kept over the rounds."""
    note = (
        "Filters and neurons that are kept in each group of layers that are pruned "
        "together, round by round. A strong pixel keeps all, a faint one few."
    )
    if not all(run.dense_units for run in runs):
        note += (
            " Where a ledger does not say how many units the dense model has, ratios "
        )
        note += "are of the most that was kept."
    maps = _maps(runs, units_heat, lambda run: ("round 0", str(run.rounds)))
    return section("Units kept", note if maps else "These ledgers hold no plan.", maps)


def importance(runs: Sequence[Run]) -> str:
    """Draw how importance is spread over units, where ledgers hold it."""
    maps = _maps(runs, importance_heat, lambda run: ("0", "most"))
    if not maps:
        return section("Importance", "No ledger here holds units' importance.")
    note = (
        "How units were spread by importance, from 0 to the highest of their group, as "
        "the first plan that prunes was made: a pixel is strong where there are many."
    )
    key = legend([("kept", "units kept"), ("pruned", "units pruned")])
    return section("Importance", note, key, maps)


def _maps(
    runs: Sequence[Run], make: Heats, ends: Callable[[Run], tuple[str, str]]
) -> str:
    cards = [
        card(_map(heats, *ends(run)), run.name if len(runs) > 1 else "")
        for run in runs
        if (heats := make(run))
    ]
    return grid("grid2" if len(cards) > 1 else "grid1", cards) if cards else ""


def _map(heats: Mapping[str, Heat], first: str, last: str) -> str:
    rows = "".join(
        f'<span class="name">{escape(name)}</span>{strip(heat.values, heat.words)}'
        f'<span class="many">{escape(heat.last)}</span>'
        for name, heat in heats.items()
    )
    axis = f'<span class="ends"><span>{first}</span><span>{last}</span></span>'
    return f'<div class="heatmap">{rows}<span class="empty"></span>{axis}</div>'


def heat_charts(runs: Sequence[Run], make: Heats) -> list[Chart]:
    """Draw a heat map a run, for a PNG."""
    return [
        heat_chart(run.name, {name: heat.values for name, heat in heats.items()})
        for run in runs
        if (heats := make(run))
    ]
