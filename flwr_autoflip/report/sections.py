"""The page's sections, each from runs to HTML."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .charts import (
    Line,
    Mark,
    histogram,
    line_chart,
    node_bars,
    series_class,
    strip,
)
from .curves import WINDOW, Curve, trailing_mean
from .runs import Run, dense_units, failures, node_figures, summarise, units_kept
from .svg import amount, duration, percent, tag
from .tables import UNKNOWN, Cell, table

SHOWN_GROUPS = 12
"""Histograms a run before the others hide behind a click."""
FAR_APART = 8.0
"""Runs whose costs differ by this factor share a logarithmic axis."""
SHOWN_FAILURES = 200
LONGEST_REASON = 400


def section(title: str, note: str, *content: str) -> str:
    """Write a section with its head."""
    head = f"<h2>{escape(title)}</h2>" + (f'<p class="note">{escape(note)}</p>')
    return f"<section>{head}{''.join(content)}</section>"


def card(*content: str, title: str = "") -> str:
    """Write a card."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<div class="card">{head}{"".join(content)}</div>'


def grid(kind: str, *cards: str) -> str:
    """Write cards beside each other."""
    return f'<div class="{kind}">{"".join(cards)}</div>'


# --- Overview ---


def lead(runs: Sequence[Run]) -> str:
    """Say in a sentence or two what happened."""
    if len(runs) > 1:
        return "Side by side, by the same measure; exploring is in every total."
    found = summarise(runs[0])
    said = f"{found['rounds']} rounds, {found['nodes']} nodes."
    if found["dense_parameters"]:
        kept = percent(found["parameters"] / found["dense_parameters"])
        said += f" The model that would be deployed keeps {kept} of the parameters."
    if found["dense_bytes"]:
        share = found["saved_bytes"] / found["dense_bytes"]
        words = "less" if share >= 0 else "more"
        said += (
            f" Nodes moved {percent(abs(share))} {words} bytes than the dense model's "
            "messages would have, exploring included."
        )
    return said


def figures(run: Run) -> str:
    """Write a run's main figures."""
    found = summarise(run)
    moved = found["bytes_down"] + found["bytes_up"]
    tiles: list[tuple[str, str, str]] = []
    if found["value"] is not None:
        dense = found["dense_value"]
        beside = "" if dense is None else f"global dense model {dense:.3f}"
        tiles.append(
            (f"{found['metric']}, last {WINDOW}", f"{found['value']:.3f}", beside)
        )
    if found["dense_parameters"]:
        for name, key in (("parameters", "parameters"), ("MACs", "macs_per_example")):
            small, dense = found[key], found[f"dense_{key}"]
            beside = f"{amount(small)} of {amount(dense)}"
            tiles.append((f"{name} kept", percent(small / dense), beside))
    saved, reference = found["saved_bytes"], found["dense_bytes"]
    beside = "" if not reference else f"dense {amount(reference, 'B')}"
    tiles.append(("bytes moved", amount(moved, "B"), beside))
    if reference:
        part = f"{amount(saved, 'B')} of {amount(reference, 'B')}"
        tiles.append(("bytes saved", percent(saved / reference), part))
    explored = found["exploration_bytes"]
    beside = f"exploring {amount(explored, 'B')}, {percent(explored / max(1, moved))}"
    tiles[-1 - bool(reference)] = (*tiles[-1 - bool(reference)][:2], beside)
    spent, exploring = found["client_macs"], found["exploration_macs"]
    beside = f"exploring {percent(exploring / max(1, spent))}"
    tiles.append(("client MACs", amount(spent), beside))
    tiles.append(("failures", str(found["failures"]), f"of {len(run.nodes)} messages"))
    written = "".join(
        f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd>'
        f'<dd class="beside">{escape(beside)}</dd></div>'
        for name, value, beside in tiles
    )
    return f'<dl class="figures">{written}</dl>'


HEADS = (
    "run",
    "rounds",
    "accuracy",
    "dense",
    "parameters",
    "MACs",
    "bytes",
    "exploring",
    "saved",
    "client MACs",
    "failures",
)


def comparison(runs: Sequence[Run]) -> str:
    """Write runs' main figures side by side."""
    rows = [_compared(run, summarise(run)) for run in runs]
    note = (
        f"Accuracy is the mean of the last {WINDOW} evaluations of the model that "
        "would be deployed, then of the global dense one; parameters and MACs are "
        "shares of the dense model's; saved is against the dense model's own messages."
    )
    return section("Side by side", note, card(table(HEADS, rows)))


def _compared(run: Run, found: dict[str, Any]) -> list[Cell]:
    moved, explored = (
        found["bytes_down"] + found["bytes_up"],
        found["exploration_bytes"],
    )

    def number(key: str) -> Cell:
        value = found[key]
        return UNKNOWN if value is None else Cell(f"{value:.3f}", value)

    def share(part: str, whole: str) -> Cell:
        if not found[whole] or found[part] is None:
            return UNKNOWN
        value = found[part] / found[whole]
        return Cell(percent(value), value)

    return [
        Cell(run.name, kind="name"),
        Cell(str(run.rounds), run.rounds),
        number("value"),
        number("dense_value"),
        share("parameters", "dense_parameters"),
        share("macs_per_example", "dense_macs_per_example"),
        Cell(amount(moved, "B"), moved),
        Cell(amount(explored, "B"), explored),
        share("saved_bytes", "dense_bytes"),
        Cell(amount(found["client_macs"]), found["client_macs"]),
        _failed(found["failures"]),
    ]


def _failed(count: int) -> Cell:
    return Cell(str(count), count, "bad" if count else "")


def legend(runs: Sequence[Run]) -> str:
    """Say which colour is which run; nothing for a single one."""
    if len(runs) == 1:
        return ""
    items = ""
    for number, run in enumerate(runs):
        kind = f"line main {series_class(number)}"
        line = tag("line", x1=1, x2=23, y1=5, y2=5, class_=kind)
        items += f"<li><svg aria-hidden='true'>{line}</svg>{escape(run.name)}</li>"
    return f'<ul class="legend">{items}</ul>'


# --- Curves ---


def accuracy(runs: Sequence[Run]) -> str:
    """Draw accuracy against rounds, bytes and MACs, exploring marked."""
    drawn = [(i, run, run.curve) for i, run in enumerate(runs) if run.curve is not None]
    title = "Accuracy against what it cost"
    if not drawn:
        note = "The server evaluated nothing: give AutoFlip's start() an evaluate_fn."
        return section(title, note)
    alone = len(runs) == 1
    metrics = sorted({str(run.metric) for _, run, _ in drawn})
    note = (
        f"{' and '.join(metrics)} of the model that would be deployed, mean of "
        f"{WINDOW} rounds{' (single ones faint)' if alone else ''}. Costs are sums "
        f"over all nodes; {'the shaded part' if alone else 'a triangle'} is what "
        "exploring took before round 1."
    )
    rounds = [(i, run, np.array([row["round"] for row in run.server], float), line)
              for i, run, line in drawn]  # fmt: skip
    moved = [(i, run, line.bytes_moved, line) for i, run, line in drawn]
    spent = [(i, run, line.macs, line) for i, run, line in drawn]
    charts = [
        card(line_chart(_lines(rounds), (), label="round", whole=True)),
        card(_against(moved, "bytes moved", "B", alone)),
        card(_against(spent, "client MACs", "", alone)),
    ]
    return section(title, note, legend(runs), grid("grid3", *charts))


Drawn = Sequence[tuple[int, Run, NDArray[np.float64], Curve]]


def _lines(drawn: Drawn) -> list[Line]:
    lines = []
    for number, run, x, line in drawn:
        enough = len(line.top1) >= 2 * WINDOW
        role = "raw" if enough else "main"
        lines.append(Line(run.name, number, x, line.top1, role))
        if enough:
            lines.append(Line(run.name, number, x, line.smooth()))
        if enough and len(drawn) > 1:
            lines.pop(-2)  # many runs' single rounds would hide each other
    return lines


def _against(drawn: Drawn, label: str, unit: str, alone: bool) -> str:
    ends = [x[-1] for _, _, x, _ in drawn if x[-1] > 0]
    log = len(ends) > 1 and max(ends) > FAR_APART * min(ends)
    marks = [
        Mark(number, float(x[0]), f"{run.name}: exploring took {amount(x[0], unit)}")
        for number, run, x, _ in drawn
        if run.exploring and x[0] > 0
    ]
    lines = _lines(drawn)
    return line_chart(lines, marks, label=label, unit=unit, log=log, alone=alone)


def against_dense(runs: Sequence[Run]) -> str:
    """Draw bytes, MACs and accuracy over rounds beside the dense model's."""
    note = (
        "Solid: this run, exploring at round 0. Dashed: the dense model, by the same "
        "messages and examples without exploring; its accuracy is that of the global "
        "model before it is cut."
    )
    if any(run.dense_moved is None for run in runs):
        note += " Some ledgers do not say what the dense model's messages weigh."
    moved, spent, reached = [], [], []
    for number, run in enumerate(runs):
        rounds = np.arange(run.rounds + 1, dtype=float)
        totals = run.spent("bytes_down", "bytes_up"), run.spent("macs")
        moved += _beside(run.name, number, rounds, totals[0], run.dense_moved)
        spent += _beside(run.name, number, rounds, totals[1], run.dense_spent)
        if run.curve is not None:
            when = np.array([row["round"] for row in run.server], float)
            both = run.curve.top1, run.curve.dense_top1
            if len(when) >= 2 * WINDOW:
                both = trailing_mean(both[0]), trailing_mean(both[1])
            reached += _beside(run.name, number, when, *both)
    charts = [
        card(line_chart(lines, (), label="round", y_unit=unit, whole=True), title=title)
        for title, lines, unit in (
            ("Bytes moved", moved, "B"),
            ("Client MACs", spent, ""),
            ("Accuracy", reached, None),
        )
        if lines
    ]
    title = "Against the dense model"
    return section(title, note, legend(runs), grid("grid3", *charts))


def _beside(
    name: str,
    number: int,
    x: NDArray[np.float64],
    own: NDArray[np.float64],
    dense: NDArray[np.float64] | None,
) -> list[Line]:
    lines = [Line(name, number, x, own)]
    if dense is not None and np.isfinite(dense).any():
        lines.append(Line(f"{name}, dense model", number, x, dense, "reference"))
    return lines


# --- Structure ---


def units(runs: Sequence[Run]) -> str:
    """Draw the units that each group of layers kept over the rounds."""
    cards = [_heat_map(run, len(runs) > 1) for run in runs if units_kept(run)]
    note = "Filters and neurons that stay in each group of layers that live or die "
    note += "together. A dark cell keeps all, a faint one few."
    if not cards:
        return section("Units kept", "These ledgers hold no plan.")
    ramp = '<span class="ramp"></span>'
    key = f'<ul class="legend"><li>0 %{ramp}100 % of the units</li></ul>'
    kind = "grid2" if len(cards) > 1 else "grid1"
    return section("Units kept", note, key, grid(kind, *cards))


def _heat_map(run: Run, named: bool) -> str:
    kept, dense = units_kept(run), dense_units(run)
    parts = []
    for name, counts in kept.items():
        whole = dense.get(name, max(counts))
        last = f"{counts[-1]} of {whole}" if name in dense else f"{counts[-1]}"
        parts.append(f'<span class="name">{escape(name)}</span>')
        parts.append(strip([count / whole for count in counts], name))
        parts.append(f'<span class="many">{last}</span>')
    parts.append('<span class="empty"></span>')
    parts.append(
        f'<span class="ends"><span>round 0</span><span>{run.rounds}</span></span>'
    )
    missing = "" if dense else (
        '<p class="note">The ledger does not say how many units the dense model has: '
        "shares are of the most that was kept.</p>"
    )  # fmt: skip
    body = f'<div class="heatmap">{"".join(parts)}</div>'
    return card(missing, body, title=run.name if named else "")


def guidance(runs: Sequence[Run]) -> str:
    """Draw how guidance is spread over units, where ledgers hold it."""
    parts = []
    for run in runs:
        found = [row["guidance"] for row in run.plans if "guidance" in row]
        if found:
            head = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
            parts.append(card(head, _histograms(found[0])))
    note = (
        "How far explorers moved a unit's own parameters (mean guidance, in [0, 1]), "
        "when the run's first plan was made. Units that matter lie right."
    )
    if not parts:
        note = (
            "No ledger here holds guidance: nobody explored, or it is older than that."
        )
        return section("Guidance", note)
    key = (
        '<ul class="legend"><li><span class="key kept"></span>units that stay</li>'
        '<li><span class="key gone"></span>units that go</li></ul>'
    )
    return section("Guidance", note, key, *parts)


def _histograms(groups: dict[str, Any]) -> str:
    drawn = [
        f'<div><h3 class="name">{escape(name)}</h3>{histogram(counts)}</div>'
        for name, counts in groups.items()
    ]
    first, rest = drawn[:SHOWN_GROUPS], drawn[SHOWN_GROUPS:]
    more = (
        f"<details><summary>{len(rest)} more</summary>{grid('small', *rest)}</details>"
    )
    return grid("small", *first) + (more if rest else "")


# --- Nodes ---


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
            Cell(amount(node["macs"]), node["macs"]),
            Cell(duration(node["seconds"]), round(node["seconds"], 3)),
            _failed(node["failures"]),
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
                Cell(str(fault["count"]), fault["count"]),
                Cell(str(fault["nodes"]), fault["nodes"]),
                Cell(when, first),
                Cell(fault["phase"]),
                Cell(fault["status"]),
                Cell(fault["reason"][:LONGEST_REASON], kind="words"),
            ]
            rows.append(
                [Cell(run.name, kind="name"), *cells] if len(runs) > 1 else cells
            )
    if not rows:
        return section("Failures", "None: every message was answered and accepted.")
    heads = ["messages", "nodes", "rounds", "phase", "status", "reason"]
    heads = ["run", *heads] if len(runs) > 1 else heads
    note = "Messages without a valid reply, alike ones counted together. Rounds go on."
    return section("Failures", note, card(table(heads, rows, "tall")))
