"""The page's lines: accuracy against its cost, and beside the dense model's."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..ledger import unknown
from .charts import Line, Mark, line_chart
from .curves import WINDOW, Curve, trailing_mean
from .frame import card, grid, legend, section
from .runs import Run
from .svg import amount

FAR_APART = 8.0
"""Runs whose costs differ by this factor share a logarithmic axis."""


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
        f"over all nodes; {'the shaded part' if alone else 'a triangle'} marks what "
        "exploring took before round 1."
    )
    note += _left_out(runs)
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


def _left_out(runs: Sequence[Run]) -> str:
    """Say how many messages' MACs are not in the lines."""
    count = sum(unknown(run.nodes, "macs") for run in runs)
    words = "client MACs are at least what is drawn"
    return f" MACs of {count} messages are unknown: {words}." if count else ""


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
        "Lines: these runs, exploring at round 0. Dotted: the dense model, by the same "
        "messages and examples without exploring; its accuracy is that of the global "
        "model before it is cut."
    )
    if any(run.dense_moved is None for run in runs):
        note += " Some ledgers do not say what the dense model's messages weigh."
    note += _left_out(runs)
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
