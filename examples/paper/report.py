"""``python -m examples.paper report``: tables and figures of what has been run."""

import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from flwr_autoflip.ledger.provenance import describe as describe_made

from . import figures, series
from .data import DataError
from .markdown import (
    accuracy_markdown,
    cost_markdown,
    published_cost_markdown,
    published_markdown,
    size_markdown,
    summary_markdown,
)
from .methods import EVERYTHING, LONGER, METHODS
from .published import REASONS, SMALL_SCALE
from .records import write_atomically
from .results import Found, Outcome, by_method, read_runs, tasks_of
from .sizes import read_timed, size_table
from .tables import Table, accuracy_table, cost_table
from .verdict import OURS, where_autoflip_loses

Methods = dict[str, list[Outcome]]

MEASURED_BY = {
    "short": (
        "Columns 1 to 3 as in Table III, the others as in Table V: how many seeds got "
        "to FedAvg's final accuracy, and what it took over what it took FedAvg."
    ),
    "III": (
        "Global test top-1 of the deployable network: mean of the last five "
        "evaluations, then mean ± sample standard deviation over seeds. Equal rounds: "
        "FedAvg's. Equal MACs, equal bytes: all that FedAvg of the same seed computed "
        "and moved; a method is taken at its last round within that. (at 31 %): it "
        "ended after 31 % of the budget. Dense model, nodes' own tests: at equal "
        "rounds, before anything is cut; mean over the nodes of the deployable "
        "network's top-1 on their own test examples. -: not measured, or exploration "
        "alone takes more than the budget. **Best** of those with all seeds. "
        "Exploration, masks and new plans are in all totals."
    ),
    "IV": (
        "Networks really built from the sizes that the runs ended with, means over "
        "seeds; a MAC is half a FLOP of Eq. 12. Single weights at zero stay in memory "
        "and are computed, so they stand apart. Step time: a training step over the "
        "dense network's, median, both in turns in one process, one thread, first "
        "seed."
    ),
    "V": (
        "What it took until the trailing mean of five evaluations was at least "
        "FedAvg's final one, of the same seed; FedAvg's own row is when it first got "
        "there. Bytes are serialised messages in both directions. Means over the seeds "
        "that got there; exploration included. -: none did."
    ),
}

BESIDE = (
    "The last figure is global test top-1 at round 200 in the authors' published "
    "result files; FEMNIST's is of clients that took no part. Why all three differ:"
)


def write_report(
    runs: Path, results: Path, console: Console, data: str = "", hardware: str = ""
) -> None:
    """Write ``report.md``, ``results.json`` and the figures.

    Parameters
    ----------
    runs : Path
        Holds ``<task>/<method>/seed<k>/``; its name is the scale's.
    results : Path
        Folder to write. What an older report there timed is kept for networks of the
        same sizes.
    console : Console
        Is told what was written.
    data : str (default: "")
        Folder of data sets, for Figure 6.
    hardware : str (default: "")
        What times were measured on; "" reads it from this machine.

    Raises
    ------
    ValueError
        If there is no finished run.
    """
    found = read_runs(runs)
    results.mkdir(parents=True, exist_ok=True)
    tasks = {task: by_method(found.outcomes, task) for task in tasks_of(found.outcomes)}
    compared = {
        task: {name: some for name, some in methods.items() if name in METHODS}
        for task, methods in tasks.items()
    }
    accuracy = {
        task: accuracy_table(
            {n: some for n, some in methods.items() if n in METHODS | LONGER}
        )
        for task, methods in tasks.items()
    }
    cost = {task: cost_table(methods) for task, methods in compared.items()}
    timed = read_timed(results / "results.json")
    sizes, unbuilt = measure_sizes(compared, timed)
    drawn, numbers, skipped = draw_figures(tasks, results, data)
    hardware = hardware or this_machine()
    made_by = {
        task: _made_by(runs, task, accuracy[task], found, hardware) for task in tasks
    }
    text = [
        *_first_lines(runs.name, accuracy, cost, sizes),
        *_what_was_run(runs, found, hardware),
        *_tables(runs, made_by, compared, accuracy, cost, sizes),
        *_figures(drawn, unbuilt + skipped),
    ]
    write_atomically(results / "report.md", "\n".join(text) + "\n")
    figures_of = {
        "totals": ledger_totals(found.outcomes),
        "table_iii": describe(accuracy),
        "table_iv": sizes,
        "table_v": describe(cost),
        "figures": numbers,
        "refused": [[*key, reason] for key, reason in found.refused.items()],
        "damaged": found.damaged,
    }
    write_atomically(results / "results.json", json.dumps(figures_of, indent=1))
    console.print(
        f"{len(found.outcomes)} runs. Written: {results}/report.md, results.json, "
        f"{', '.join(path.name for path in drawn) or 'no figure'}."
    )


def measure_sizes(
    compared: Mapping[str, Methods],
    timed: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """Build Table IV; say which tasks' networks cannot be built any more."""
    sizes, unbuilt = {}, []
    for task, methods in compared.items():
        try:
            if table := size_table(methods, timed.get(task)):
                sizes[task] = table
        except (ValueError, TypeError) as error:  # runs of an older program
            unbuilt.append(f"Table IV, {task}, is left out: {error}")
    return sizes, unbuilt


def describe(tables: Mapping[str, Table]) -> dict[str, Any]:
    """Turn cells into what JSON takes."""
    return {
        task: {
            method: {column: cell.describe() for column, cell in row.items()}
            for method, row in table.items()
        }
        for task, table in tables.items()
    }


def ledger_totals(outcomes: list[Outcome]) -> dict[str, float]:
    """Add up what all runs moved, computed and took."""
    results = [one.result for one in outcomes]
    return {
        "runs": len(results),
        "bytes": sum(result["bytes"][-1] for result in results),
        "macs": sum(result["macs"][-1] for result in results),
        "seconds": sum(result["seconds"] for result in results),
        "lost_replies": sum(result["lost"] for result in results),
    }


def this_machine() -> str:
    """Say what the program runs on, without its name."""
    system, kind = platform.system(), platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} CPU cores ({system}, {kind}){gpu}"


# --- The page ---


def _first_lines(
    scale: str,
    accuracy: Mapping[str, Table],
    cost: Mapping[str, Table],
    sizes: Mapping[str, Any],
) -> list[str]:
    merged = {
        task: {name: row | cost[task].get(name, {}) for name, row in table.items()}
        for task, table in accuracy.items()
    }
    ratios = {t: s[OURS]["time_ratio"] for t, s in sizes.items() if OURS in s}
    losses = where_autoflip_loses(merged, ratios)
    lines = [f"- {line}." for line in losses] or ["- In nothing that is measured here."]
    return [f"# Where AutoFLIP loses, scale {scale}", "", *lines, ""]


def _what_was_run(runs: Path, found: Found, hardware: str) -> list[str]:
    lines = [
        f"Scale {runs.name}: {_totals(found.outcomes)}.",
        f"Hardware: {hardware}.",
        *_made_with(found.outcomes),
        *_lost(found.outcomes),
    ]
    if found.unfinished:
        lines.append(f"{found.unfinished} run(s) are not finished and are left out.")
    lines += [f"Damaged and skipped: {line}" for line in found.damaged]
    lines += [
        f"Refused, {task}, {EVERYTHING[method].title}: {reason}"
        for (task, method), reason in found.refused.items()
    ]
    return ["## What was run", "", *(f"- {line}" for line in lines), ""]


def _made_with(outcomes: list[Outcome]) -> list[str]:
    """Say what runs were made with: a line for each commit, versions and machine."""
    lines = Counter(describe_made({**one.provenance, "date": ""}) for one in outcomes)
    return [
        f"Made with {made}: {count} run(s)."
        if made
        else f"Without a record of what they were made with: {count} run(s)."
        for made, count in sorted(lines.items())
    ]


def _lost(outcomes: list[Outcome]) -> list[str]:
    """Name the runs that lost replies, and why where that was kept."""
    lines = []
    for one in outcomes:
        if one.result["lost"]:
            why = "; ".join(
                f"{found['status']} in round {found['first_round']}: {found['reason']}"
                for found in one.result.get("failures", [])
            )
            name = f"{one.task}, {EVERYTHING[one.method].title}, seed {one.seed}"
            reason = why or "reasons were not kept"
            lines.append(f"Replies lost, {name}: {one.result['lost']} ({reason}).")
    return lines


def _tables(
    runs: Path,
    made_by: Mapping[str, str],
    compared: Mapping[str, Methods],
    accuracy: Mapping[str, Table],
    cost: Mapping[str, Table],
    sizes: Mapping[str, Any],
) -> list[str]:
    reasons = (*REASONS, SMALL_SCALE) if runs.name == "small" else REASONS

    def by_task(write: Callable[[str, int], str]) -> list[str]:
        lines = []
        for task, methods in compared.items():
            if methods:  # else ablations only
                seeds = max(len(some) for some in methods.values())
                lines += [f"### {task}, {seeds} seed(s)", "", write(task, seeds)]
                lines += [made_by[task], ""]
        return lines

    return [
        *("## In short", "", MEASURED_BY["short"], ""),
        *by_task(lambda t, seeds: summary_markdown(accuracy[t], cost[t], seeds)),
        *("## Table III: accuracy", "", MEASURED_BY["III"], ""),
        *by_task(lambda task, seeds: accuracy_markdown(accuracy[task], seeds)),
        *("### Beside the paper's, at equal rounds", ""),
        *(published_markdown(accuracy), BESIDE, ""),
        *(f"- {reason}" for reason in reasons),
        *("", "## Table IV: size and speed", "", MEASURED_BY["IV"], ""),
        size_markdown(sizes) if sizes else "No run of AutoFLIP.\n",
        *(f"`{_report_command(runs)}`, on the runs of Table III.", ""),
        *("## Table V: communication", "", MEASURED_BY["V"], ""),
        *by_task(lambda task, _: cost_markdown(cost[task])),
        published_cost_markdown(list(compared)),
    ]


def _made_by(runs: Path, task: str, table: Table, found: Found, hardware: str) -> str:
    """Give the command that makes a task's runs, what they cost, and where."""
    tried = {name for of_task, name in found.refused if of_task == task} | set(table)
    names = [name for name in table if name in METHODS]
    names = ["all"] if set(METHODS) <= tried else names
    if set(LONGER) <= set(table):
        names.append("longer")
    outcomes = [
        one for one in found.outcomes if one.task == task and one.method in table
    ]
    seeds = 1 + max((one.seed for one in outcomes), default=0)
    return (
        f"`python -m examples.paper run --task {task} --methods {','.join(names)} "
        f"--seeds {seeds} --scale {runs.name}`: {_totals(outcomes)}; {hardware}. Then "
        f"`{_report_command(runs)}`."
    )


def _totals(outcomes: list[Outcome]) -> str:
    totals = ledger_totals(outcomes)
    return (
        f"{totals['runs']} runs, {totals['bytes'] / 1e9:,.2f} GB moved, "
        f"{totals['macs'] / 1e12:,.3f} TMACs computed, {totals['seconds']:,.0f} s, "
        f"{totals['lost_replies']} replies lost"
    )


def _report_command(runs: Path) -> str:
    return f"python -m examples.paper report --scale {runs.name}"


def _figures(drawn: list[Path], skipped: list[str]) -> list[str]:
    lines = ["## Figures", ""]  # and what is left out, figure or table
    lines += [f"![{path.stem}]({path.name})\n" for path in drawn]
    return lines + [f"- {line}" for line in skipped]


# --- Figures ---


def draw_figures(
    tasks: Mapping[str, Methods], folder: Path, data: str
) -> tuple[list[Path], dict[str, Any], list[str]]:
    """Draw what there are runs for.

    Returns
    -------
    tuple of (list of Path, dict, list of str)
        Files, the numbers in them, and why others are not there.
    """
    drawn: list[Path] = []
    numbers: dict[str, Any] = {}
    skipped: list[str] = []
    for number, title, collect, draw in (
        (4, "variance", series.variances, figures.draw_variances),
        (5, "guidance", series.guidance, figures.draw_guidance),
        (8, "exploration", series.exploration, figures.draw_exploration),
        (9, "threshold", series.thresholds, figures.draw_thresholds),
    ):
        found: dict[str, Any] = {
            t: got for t, methods in tasks.items() if (got := collect(methods))
        }
        if not found:
            skipped.append(f"Figure {number} ({title}) is left out: no run for it.")
            continue
        path = folder / f"figure{number}-{title}.png"
        draw(found, path)
        drawn.append(path)
        numbers[path.stem] = found
    for task, methods in tasks.items():
        lines = series.curves(methods)
        if not lines:
            skipped.append(f"Figure 7, {task}, is left out: no run for it.")
            continue
        path = folder / f"figure7-{task}.png"
        rounds = next(iter(methods.values()))[0].equal_rounds
        figures.draw_curves(task, lines, rounds, path)
        drawn.append(path)
        numbers[path.stem] = lines
    skipped += _draw_partitions(tasks, folder, data, drawn, numbers)
    return sorted(drawn), numbers, sorted(skipped)


def _draw_partitions(
    tasks: Mapping[str, Methods],
    folder: Path,
    data: str,
    drawn: list[Path],
    numbers: dict[str, Any],
) -> list[str]:
    """Draw Figure 6; give the reasons why a task is not in it."""
    if not data:
        return ["Figure 6 (partition) is left out: it needs --data."]
    shares, skipped = {}, []
    for task, methods in tasks.items():
        try:
            shares[task] = series.class_shares(
                next(iter(methods.values()))[0], Path(data)
            )
        except DataError as error:
            skipped.append(f"Figure 6, {task}, is left out: {error}")
    if shares:
        path = folder / "figure6-partition.png"
        figures.draw_partitions(shares, path)
        drawn.append(path)
        numbers[path.stem] = {task: share.tolist() for task, share in shares.items()}
    return skipped
