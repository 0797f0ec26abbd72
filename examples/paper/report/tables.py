"""Tables III and V, as plain functions of finished runs, and as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flwr_autoflip.ledger.page.curves import WINDOW, Curve

from ..methods import EVERYTHING
from ..records import Methods, Outcome

BASELINE = "fedavg"
ACCURACY = {
    "rounds": "equal rounds",
    "macs": "equal MACs",
    "bytes": "equal bytes",
    "dense": "dense model",
    "local": "nodes' own tests",
}
"""Columns of Table III; the last two are at equal rounds as well."""
COST = {
    "target": "FedAvg's final top-1",
    "target_rounds": "rounds",
    "target_bytes": "bytes",
    "target_macs": "MACs",
    "bytes_saved": "bytes saved",
    "macs_saved": "MACs saved",
}
"""Columns of Table V: what it took to reach FedAvg's final accuracy."""
FULLY_USED = 0.995


@dataclass
class Cell:
    """One figure of a table.

    Parameters
    ----------
    values : dict of int to float
        Seed -> figure; seeds without one are left out.
    used : dict of int to float
        Seed -> share of the budget that the run spent, at equal budgets only.
    """

    values: dict[int, float] = field(default_factory=dict)
    used: dict[int, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(list(self.values.values())))

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds; None for a single one."""
        values = list(self.values.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    @property
    def mean_used(self) -> float:
        """Mean share of the budget that was spent."""
        return float(np.mean(list(self.used.values()))) if self.used else 1.0

    def describe(self) -> dict[str, Any]:
        """Give everything about the figure, for JSON."""
        if not self.values:
            return {"values": {}}
        described: dict[str, Any] = {"mean": self.mean, "sd": self.deviation}
        described["values"] = self.values
        return described | ({"budget_used": self.used} if self.used else {})


Row = dict[str, Cell]
Table = dict[str, Row]
"""Method -> column -> figure."""


# --- One run ---


def last_round_within(costs: Sequence[float], budget: float) -> int | None:
    """Give the last round whose cumulative cost is within a budget.

    Parameters
    ----------
    costs : sequence of float
        Entry 0 is what came before round 1.
    budget : float

    Returns
    -------
    int or None
        None if entry 0 alone is more.
    """
    within = np.flatnonzero(np.asarray(costs) <= budget)
    return int(within[-1]) if len(within) else None


def at_budget(
    curve: Curve, costs: Sequence[float], budget: float
) -> tuple[float, float] | None:
    """Give accuracy at a budget, and the share of it that the run spent.

    The share is 1 unless the run ended with budget for one more round of its own.

    Parameters
    ----------
    curve : Curve
    costs : sequence of float
        Cumulative, of the same rounds.
    budget : float

    Returns
    -------
    tuple of (float, float) or None
        None if what came before round 1 takes more than the budget.
    """
    last = last_round_within(costs, budget)
    if last is None:
        return None
    rounds = len(costs) - 1
    one_more = costs[-1] + (costs[-1] - costs[0]) / max(1, rounds)
    ended = last == rounds and one_more <= budget
    return curve.mean_until(last), float(costs[-1] / budget) if ended else 1.0


def window_mean(values: Sequence[float | None], last_round: int) -> float | None:
    """Mean of the last five figures up to a round; None if one of them is missing."""
    window = values[: last_round + 1][-WINDOW:]
    present = [value for value in window if value is not None]
    return float(np.mean(present)) if len(present) == len(window) else None


def cost_to_reach(run: Curve, baseline: Curve, last_round: int) -> dict[str, float]:
    """Compare what it takes to reach a baseline's final accuracy.

    Parameters
    ----------
    run, baseline : Curve
    last_round : int
        Of the baseline; its last five evaluations up to there are the target.

    Returns
    -------
    dict of str to float
        Keys of :data:`COST`; the target alone if the run never gets there. Savings
        are over what the baseline itself took to get there first.
    """
    target = baseline.mean_until(last_round)
    here, there = (one.rounds_to(target) for one in (run, baseline))
    if here is None or there is None:
        return {"target": target}
    return {
        "target": target,
        "target_rounds": here,
        "target_bytes": run.bytes_moved[here],
        "target_macs": run.macs[here],
        "bytes_saved": 1 - run.bytes_moved[here] / baseline.bytes_moved[there],
        "macs_saved": 1 - run.macs[here] / baseline.macs[there],
    }


# --- All seeds of all methods of one task ---


def accuracy_table(methods: Methods) -> Table:
    """Build a task's part of Table III."""
    baselines = {one.seed: one for one in methods.get(BASELINE, ())}
    return {name: _accuracy_row(runs, baselines) for name, runs in methods.items()}


def _accuracy_row(runs: Iterable[Outcome], baselines: Mapping[int, Outcome]) -> Row:
    row: Row = {column: Cell() for column in ACCURACY}
    for one in runs:
        rounds = one.equal_rounds
        row["rounds"].values[one.seed] = one.curve.mean_until(rounds)
        for column in ("dense", "local"):
            value = window_mean(one.result[f"{column}_top1"], rounds)
            if value is not None:
                row[column].values[one.seed] = value
        if one.seed not in baselines:
            continue
        for column in ("macs", "bytes"):
            budget = baselines[one.seed].result[column][rounds]
            reached = at_budget(one.curve, one.result[column], budget)
            if reached is not None:
                row[column].values[one.seed], row[column].used[one.seed] = reached
    return row


def cost_table(methods: Methods) -> Table:
    """Build a task's part of Table V; empty without a run of FedAvg."""
    baselines = {one.seed: one for one in methods.get(BASELINE, ())}
    table: Table = {}
    for name, runs in methods.items():
        compared = [one for one in runs if one.seed in baselines]
        if compared:
            table[name] = {column: Cell() for column in COST}
        for one in compared:
            baseline = baselines[one.seed].curve
            reached = cost_to_reach(one.curve, baseline, one.equal_rounds)
            for column, value in reached.items():
                table[name][column].values[one.seed] = float(value)
    return table


def best_methods(table: Table, column: str, seeds: int) -> set[str]:
    """Name the methods of the highest mean among those that have all seeds."""
    full = {
        n: r[column].mean for n, r in table.items() if len(r[column].values) == seeds
    }
    return {name for name, mean in full.items() if mean == max(full.values())}


# --- Markdown ---


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table, figures to the right."""
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def show_accuracy(cell: Cell, seeds: int, best: bool) -> str:
    """Write mean ± sd, and what is unusual about it."""
    if not cell.values:
        return "-"
    text = f"{cell.mean:.3f}"
    if cell.deviation is not None:
        text += f" ±{cell.deviation:.3f}"
    text = f"**{text}**" if best else text
    if cell.mean_used < FULLY_USED:
        text += f" (at {100 * cell.mean_used:.0f} %)"
    return text + _count_of(cell, seeds)


def _count_of(cell: Cell, seeds: int) -> str:
    """Say how many seeds there are, if not all."""
    count = len(cell.values)
    return f" [{count} of {seeds} seeds]" if count < seeds else ""


def accuracy_markdown(table: Table, seeds: int) -> str:
    """Write a task's part of Table III."""
    best = {column: best_methods(table, column, seeds) for column in ACCURACY}
    rows = [
        [
            EVERYTHING[name].title,
            *(show_accuracy(row[c], seeds, name in best[c]) for c in ACCURACY),
        ]
        for name, row in table.items()
    ]
    return markdown_table(("method", *ACCURACY.values()), rows)


def summary_markdown(accuracy: Table, cost: Table, seeds: int) -> str:
    """Write a task in short: accuracy at equal costs, cost to FedAvg's accuracy."""
    columns = ("rounds", "macs", "bytes")
    best = {column: best_methods(accuracy, column, seeds) for column in columns}
    rows = []
    for name, row in accuracy.items():
        title = EVERYTHING[name].title + _count_of(row["rounds"], seeds)
        run = len(row["rounds"].values)
        shown = (show_accuracy(row[c], run, name in best[c]) for c in columns)
        rows.append([title, *shown, *_shares_to_target(cost.get(name))])
    header = (*(ACCURACY[column] for column in columns), "there", "MACs", "bytes")
    return markdown_table(("method", *header), rows)


def _shares_to_target(row: Row | None) -> list[str]:
    """Write how many seeds got there, and for what share of FedAvg's costs."""
    if row is None:
        return ["", "", ""]
    saved = [row["macs_saved"], row["bytes_saved"]]
    there = f"{len(saved[0].values)}/{len(row['target'].values)}"
    shares = (f"{1 - cell.mean:.2f}" if cell.values else "-" for cell in saved)
    return [there, *shares]


def cost_markdown(table: Table) -> str:
    """Write a task's part of Table V."""
    if not table:
        return "No run of FedAvg.\n"
    units = {"target_bytes": 1e6, "target_macs": 1e9}
    rows = []
    for name, row in table.items():
        shown = []
        for column in COST:
            cell = row[column]
            if column == "target":
                shown.append(f"{cell.mean:.3f}")
            elif not cell.values:
                shown.append("-")
            elif column.endswith("_saved"):
                shown.append(f"{100 * cell.mean:.0f} %")
            else:
                shown.append(f"{cell.mean / units.get(column, 1):,.1f}")
        reached, seeds = (len(row[c].values) for c in ("target_rounds", "target"))
        rows.append([EVERYTHING[name].title, f"{reached} of {seeds}", *shown])
    header = ("method", "seeds there", "target", "rounds", "MB", "GMACs")
    return markdown_table((*header, "bytes saved", "MACs saved"), rows)
