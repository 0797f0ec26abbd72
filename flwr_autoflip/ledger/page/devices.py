"""The page's nodes: what each moved, how long it took, and what went wrong."""

from collections.abc import Sequence
from typing import Any

from ...errors import visible
from .charts import node_bars
from .frame import card, grid, section
from .runs import Run, failures, node_figures
from .svg import amount, duration
from .tables import Cell, failed, macs_cell, table

SHOWN_FAILURES = 200
LONGEST_REASON = 400


def node_section(runs: Sequence[Run]) -> str:
    """Draw and list what each node moved and how long it took."""
    key = (
        '<ul class="legend"><li><span class="key down"></span>bytes to the node</li>'
        '<li><span class="key up"></span>bytes from the node</li></ul>'
    )
    note = "Totals of each node over the run, exploring included. Seconds are those in "
    note += "the app's own training and testing code."
    found = [node_figures(run) for run in runs]
    most = {
        key: max(
            (float(sum(node[k] for k in keys)) for f in found for node in f), default=0
        )
        for key, keys in (("B", ("bytes_down", "bytes_up")), ("s", ("seconds",)))
    }
    parts = [
        _nodes(run.name if len(runs) > 1 else "", nodes, most)
        for run, nodes in zip(runs, found, strict=True)
    ]
    return section("Nodes", note, key, *parts)


def _nodes(name: str, found: list[dict[str, Any]], most: dict[str, float]) -> str:
    moved = [(str(n["node"]), (n["bytes_down"], n["bytes_up"])) for n in found]
    slow = sorted(found, key=lambda n: -n["seconds"])
    seconds = [(str(n["node"]), (n["seconds"],)) for n in slow]
    charts = grid(
        "grid2",
        f"<div><h3>Bytes</h3>{node_bars(moved, ('down', 'up'), 'B', most['B'])}</div>",
        f"<div><h3>Seconds</h3>{node_bars(seconds, ('kept',), 's', most['s'])}</div>",
    )
    heads = (
        "node",
        "messages",
        "bytes down",
        "bytes up",
        "MACs",
        "seconds",
        "failures",
    )
    rows = [
        [
            Cell(str(node["node"]), kind="name"),
            Cell(str(node["messages"]), node["messages"]),
            Cell(amount(node["bytes_down"], "B"), node["bytes_down"]),
            Cell(amount(node["bytes_up"], "B"), node["bytes_up"]),
            macs_cell(node["macs"], node["unknown_macs"]),
            Cell(duration(node["seconds"]), round(node["seconds"], 3)),
            failed(node["failures"]),
        ]
        for node in found
    ]
    many = f"<summary>All {len(rows)} nodes</summary>{table(heads, rows, 'tall')}"
    opened = "" if name else " open"
    return card(charts, f"<details{opened}>{many}</details>", title=name)


def failure_tables(runs: Sequence[Run]) -> str:
    """List what went wrong, alike failures as one."""
    rows = []
    for run in runs:
        for fault in failures(run)[:SHOWN_FAILURES]:
            first, last = fault["first_round"], fault["last_round"]
            when = str(first) if first == last else f"{first} to {last}"
            cells = [
                Cell(visible(fault["reason"], LONGEST_REASON), kind="words"),
                Cell(fault["status"]),
                Cell(fault["phase"]),
                Cell(when, first),
                Cell(str(fault["nodes"]), fault["nodes"]),
                Cell(str(fault["count"]), fault["count"]),
            ]
            rows.append(
                [Cell(run.name, kind="name"), *cells] if len(runs) > 1 else cells
            )
    if not rows:
        return section("Failures", "None: every message was answered and accepted.")
    heads = ["reason", "status", "phase", "rounds", "nodes", "messages"]
    heads = ["run", *heads] if len(runs) > 1 else heads
    note = "Messages without a valid reply, alike ones counted together. Rounds go on."
    return section("Failures", note, card(table(heads, rows, "tall")))
