"""The page's lines: accuracy against its cost, and costs beside the dense model's."""

from collections.abc import Sequence

import numpy as np

from ..ledger import unknown
from .charts import Chart, Line, Values, line_chart, svg
from .curves import WINDOW, trailing_mean
from .html import SERIES, card, grid, legend, section
from .runs import Run, known_sum

FAR_APART = 8.0
"""Runs whose costs differ by this factor share a logarithmic axis."""


def accuracy(runs: Sequence[Run]) -> str:
    """Draw accuracy against rounds, bytes and MACs, exploring marked."""
    title, charts = "Accuracy against what it cost", accuracy_charts(runs)
    if not charts:
        note = "The server evaluated nothing: give AutoFlip's start() an evaluate_fn."
        return section(title, note)
    metrics = sorted({run.metric for run in runs if run.metric is not None})
    faint, mark = "", "a tick"
    if len(runs) == 1:
        faint, mark = " (single ones faint)", "the shaded part"
    note = (
        f"{' and '.join(metrics)} of the model that would be deployed, mean of "
        f"{WINDOW} rounds{faint}; dotted: of the global model before it is pruned. "
        f"Costs are sums over all nodes; {mark} marks what exploring took."
    )
    return _section(title, note, runs, charts)


def accuracy_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw accuracy against rounds, bytes and MACs; none if nothing was evaluated."""
    lines: list[list[Line]] = [[], [], []]
    for number, run in enumerate(runs):
        if (found := run.curve) is None:
            continue
        when = np.array([row["round"] for row in run.of_phase("server")], float)
        top1, dense = found.top1, found.dense_top1
        many = len(when) >= 2 * WINDOW
        if many:
            top1, dense = trailing_mean(top1), trailing_mean(dense)
        marks = None, _explored(run, "bytes_down", "bytes_up"), _explored(run, "macs")
        costs = when, found.bytes_moved, found.macs
        for drawn, x, mark in zip(lines, costs, marks, strict=True):
            if many and len(runs) == 1:
                drawn.append(Line(run.name, number, x, found.top1, "raw"))
            drawn.append(Line(run.name, number, x, top1, mark=mark))
        lines[0] += _dense(run.name, number, when, dense)
    if not lines[0]:
        return []
    return [
        line_chart("By round", lines[0], "round"),
        line_chart("By bytes", lines[1], "bytes moved", "B", log=_far(lines[1])),
        line_chart("By MACs", lines[2], "client MACs", "", log=_far(lines[2])),
    ]


def _explored(run: Run, *keys: str) -> float | None:
    """Add up what exploring took until nodes trained."""
    trained = min((r["round"] for r in run.of_phase("train")), default=0)
    rows = [row for row in run.exploring if row["round"] <= trained]
    return float(sum(known_sum(rows, key) or 0 for key in keys)) or None


def _dense(name: str, number: int, x: Values, y: Values | None) -> list[Line]:
    if y is None or not np.isfinite(y).any():
        return []
    return [Line(f"{name}, dense model", number, x, y, "reference")]


def _far(lines: Sequence[Line]) -> bool:
    ends = [line.x[-1] for line in lines if line.x[-1] > 0]
    return len(ends) > 1 and max(ends) > FAR_APART * min(ends)


def against_dense(runs: Sequence[Run]) -> str:
    """Draw bytes and MACs over rounds beside the dense model's."""
    note = (
        "Lines: these runs, exploring included. Dotted: the dense model, by the same "
        "messages and examples without exploring."
    )
    moved, spent = [], []
    for number, run in enumerate(runs):
        x, dense = np.arange(run.rounds + 1, dtype=float), run.dense_moved()
        moved.append(Line(run.name, number, x, run.spent("bytes_down", "bytes_up")))
        moved += _dense(run.name, number, x, dense)
        spent.append(Line(run.name, number, x, run.spent("macs")))
        spent += _dense(run.name, number, x, run.dense_spent())
        if dense is None:
            note += f" {run.name}'s ledger does not say what dense messages weigh."
    charts = [
        line_chart("Bytes moved", moved, "round", y_unit="B"),
        line_chart("Client MACs", spent, "round", y_unit=""),
    ]
    return _section("Against the dense model", note, runs, charts)


def _section(
    title: str, note: str, runs: Sequence[Run], charts: Sequence[Chart]
) -> str:
    if missing := sum(unknown(run.nodes, "macs") for run in runs):
        note += f" MACs of {missing} messages are unknown: client MACs are at least "
        note += "what is drawn."
    cards = [card(svg(chart), chart.name.partition(":")[0]) for chart in charts]
    entries = [
        (f"line s{n % SERIES}{' dashed' if n >= SERIES else ''}", run.name)
        for n, run in enumerate(runs)
    ]
    key = legend(entries) if len(runs) > 1 else ""
    return section(title, note, key, grid("grid3", cards))
