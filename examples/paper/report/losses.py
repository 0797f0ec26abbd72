"""Where AutoFLIP loses, computed from the tables."""

from collections.abc import Callable, Mapping

from ..methods import EVERYTHING, LONGER
from .tables import ACCURACY, BASELINE, Cell, Row, Table

OURS, RANDOM = "autoflip", "random"
FIRST = (BASELINE, RANDOM)
"""Whoever else wins, these are named: they need no guidance at all."""
HIGHER_IS_BETTER = {
    **ACCURACY,
    "bytes_saved": "bytes saved to FedAvg's accuracy",
    "macs_saved": "MACs saved to FedAvg's accuracy",
}
NAMED = 3
"""Winners named in a line; more are counted."""


def where_autoflip_loses(
    tables: Mapping[str, Table], ratios: Mapping[str, float]
) -> list[str]:
    """Say it in lines of Markdown, a task and column each.

    Parameters
    ----------
    tables : mapping of str to Table
        Task -> columns of Tables III and V together.
    ratios : mapping of str to float
        Task -> measured time of AutoFLIP's training step over the dense one's.

    Returns
    -------
    list of str
    """
    lines = []
    for task, table in tables.items():
        if OURS not in table:
            lines.append(f"{task}: no finished run of AutoFLIP, so nothing to say")
            continue
        lines += [f"{task}, {line}" for line in _task_lines(table)]
        if ratios.get(task, 0) >= 1:
            lines.append(
                f"{task}, training step: takes {ratios[task]:.2f} of the dense one's "
                "time, so its smaller network saves none"
            )
    return lines


def _task_lines(table: Table) -> list[str]:
    lines = []
    for column, title in HIGHER_IS_BETTER.items():
        if column not in table[OURS]:
            continue
        shown = _show(column)
        if better := _winners(table, column):
            seeds = len(table[OURS][column].values)
            text = "; ".join(
                f"{EVERYTHING[name].title}, {shown(theirs)} against {shown(ours)}"
                + (f" on {count} of {seeds} seeds" if count < seeds else "")
                for name, theirs, ours, count in better[:NAMED]
            )
            rest = len(better) - NAMED
            more = f"; and {rest} more" if rest > 0 else ""
            lines.append(f"{title}: better are {text}{more}")
        if close := random_is_close(table, column):
            lines.append(
                f"{title}: random units of the same size are {shown(close[0])} behind, "
                f"which is within a standard deviation ({shown(close[1])})"
            )
    lines += _never(table[OURS])
    if RANDOM in table:
        *_, seeds = _paired_means(table[OURS]["rounds"], table[RANDOM]["rounds"])
        if seeds < 2:
            lines.append(
                f"random units: {seeds} seed(s) of both, so no standard deviation says "
                "whether a difference means anything"
            )
    return lines


def _paired_means(one: Cell, other: Cell) -> tuple[float, float, int]:
    """Give both means over the seeds that both have, and how many these are."""
    seeds = sorted(set(one.values) & set(other.values))
    if not seeds:
        return 0.0, 0.0, 0
    ours, theirs = ([cell.values[s] for s in seeds] for cell in (one, other))
    return sum(ours) / len(seeds), sum(theirs) / len(seeds), len(seeds)


def _winners(table: Table, column: str) -> list[tuple[str, float, float, int]]:
    """List who is better than AutoFLIP: FedAvg, random units, then by lead.

    Each with its mean, AutoFLIP's over the same seeds, and how many these are.
    """
    found = []
    for name, row in table.items():
        if name in LONGER:  # that is AutoFLIP
            continue
        own, other, seeds = _paired_means(table[OURS][column], row.get(column, Cell()))
        if seeds and other > own:
            found.append((name, other, own, seeds))
    return sorted(found, key=lambda w: (w[0] not in FIRST, w[2] - w[1]))


def random_is_close(table: Table, column: str) -> tuple[float, float] | None:
    """Give AutoFLIP's lead over random units, if it is within a standard deviation.

    Parameters
    ----------
    table : Table
    column : str

    Returns
    -------
    tuple of (float, float) or None
        The lead, and the larger of the two methods' standard deviations. None where
        random units lose clearly, win, or fewer than two seeds have both.
    """
    if RANDOM not in table:
        return None
    ours, theirs = table[OURS][column], table[RANDOM].get(column, Cell())
    own, other, seeds = _paired_means(ours, theirs)
    deviation = max(ours.deviation or 0.0, theirs.deviation or 0.0)
    if seeds < 2 or not 0 <= own - other <= deviation:
        return None
    return own - other, deviation


def _never(row: Row) -> list[str]:
    """Say so if FedAvg's accuracy is not reached with every seed."""
    if "target" not in row:  # no run of FedAvg
        return []
    seeds, reached = len(row["target"].values), len(row["target_rounds"].values)
    if reached == seeds:
        return []
    return [f"FedAvg's accuracy: reached with {reached} of {seeds} seed(s) only"]


def _show(column: str) -> Callable[[float], str]:
    if column.endswith("_saved"):
        return lambda value: f"{100 * value:.0f} %"
    return lambda value: f"{value:.3f}"
