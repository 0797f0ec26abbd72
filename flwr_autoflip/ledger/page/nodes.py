"""The page's nodes: what each moved, how long it took, and what went wrong."""

from collections.abc import Sequence
from typing import Any

from ...errors import visible
from ..amounts import amount, duration
from .charts import Chart, bar_chart, svg
from .html import Cell, card, failure_cell, grid, legend, macs_cell, section, table
from .runs import Run, failures, node_figures

SHOWN_FAILURES = 200
LONGEST_REASON = 400
HEADS = ("node", "messages", "bytes down", "bytes up", "MACs", "seconds", "failures")


def nodes(runs: Sequence[Run]) -> str:
    """Draw and list what each node moved and how long it took."""
    note = (
        "Totals of each node over the run, exploring included. Seconds are those in "
        "the app's own training and testing code."
    )
    key = legend([("s0", "bytes to the node"), ("s2", "bytes from the node")])
    charts, parts = [card(svg(chart), chart.name) for chart in node_charts(runs)], []
    for number, run in enumerate(run for run in runs if run.nodes):
        rows = [_row(node) for node in node_figures(run)]
        listed = f"<summary>All {len(rows)} nodes</summary>{table(HEADS, rows, 'tall')}"
        opened = " open" if len(runs) == 1 else ""
        parts.append(grid("grid2", charts[2 * number : 2 * number + 2]))
        parts.append(card(f"<details{opened}>{listed}</details>"))
    return section("Nodes", note, key, *parts)


def node_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw bytes and seconds of nodes: two charts a run that has any, of one scale."""
    runs = [run for run in runs if run.nodes]
    found, charts = [node_figures(run) for run in runs], []
    every = [node for figures in found for node in figures]
    moved = max((n["bytes_down"] + n["bytes_up"] for n in every), default=0)
    slowest = max((n["seconds"] for n in every), default=0)
    for run, figures in zip(runs, found, strict=True):
        of = f" of {run.name}" if len(runs) > 1 else ""
        down, up = ([n[key] for n in figures] for key in ("bytes_down", "bytes_up"))
        seconds = sorted((n["seconds"] for n in figures), reverse=True)
        charts += [
            bar_chart(f"Bytes{of}", {"s0": down, "s2": up}, "B", moved),
            bar_chart(f"Seconds{of}", {"s0": seconds}, "s", slowest),
        ]
    return charts


def _row(node: dict[str, Any]) -> list[Cell]:
    return [
        Cell(str(node["node"]), kind="name"),
        Cell(str(node["messages"]), node["messages"]),
        Cell(amount(node["bytes_down"], "B"), node["bytes_down"]),
        Cell(amount(node["bytes_up"], "B"), node["bytes_up"]),
        macs_cell(node["macs"], node["unknown_macs"]),
        Cell(duration(node["seconds"]), round(node["seconds"], 3)),
        failure_cell(node["failures"]),
    ]


def failure_table(runs: Sequence[Run]) -> str:
    """List what went wrong, alike failures as one."""
    every = [(run, fault) for run in runs for fault in failures(run)[:SHOWN_FAILURES]]
    if not every:
        return section("Failures", "None: every message was answered and accepted.")
    rows = [
        [
            Cell(visible(fault["reason"], LONGEST_REASON), kind="words"),
            Cell(fault["status"]),
            Cell(fault["phase"]),
            Cell(_when(fault), fault["first_round"]),
            Cell(str(fault["nodes"]), fault["nodes"]),
            Cell(str(fault["count"]), fault["count"]),
            Cell(run.name, kind="name"),
        ][: 7 if len(runs) > 1 else 6]
        for run, fault in every
    ]
    heads = ("reason", "status", "phase", "rounds", "nodes", "messages", "run")
    note = "Messages without a valid reply, alike ones counted together. Rounds go on."
    return section("Failures", note, card(table(heads[: len(rows[0])], rows, "tall")))


def _when(fault: dict[str, Any]) -> str:
    first, last = fault["first_round"], fault["last_round"]
    return str(first) if first == last else f"{first} to {last}"
