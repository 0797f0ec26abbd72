"""``python -m examples.paper report``: tables and figures of what has been run."""

import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from flwr_autoflip.ledger.provenance import describe as describe_made

from ..methods import EVERYTHING, LONGER, METHODS
from ..records import Found, Methods, Outcome, read_runs, write_atomically
from . import figures, series
from .published import (
    BESIDE,
    REASONS,
    SMALL_SCALE,
    published_cost_markdown,
    published_markdown,
)
from .sizes import Sizes, size_markdown, size_table
from .tables import (
    Table,
    accuracy_markdown,
    accuracy_table,
    cost_markdown,
    cost_table,
    summary_markdown,
)

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
        "and are computed, so they stand apart."
    ),
    "V": (
        "What it took until the trailing mean of five evaluations was at least "
        "FedAvg's final one, of the same seed; FedAvg's own row is when it first got "
        "there. Bytes are serialised messages in both directions. Means over the seeds "
        "that got there; exploration included. -: none did."
    ),
}


@dataclass(frozen=True)
class Tables:
    """The tables, by task, and what the page says besides."""

    study: Path
    found: Found
    accuracy: dict[str, Table]
    cost: dict[str, Table]
    sizes: dict[str, Sizes]
    hardware: str


def write_report(
    study: Path, results: Path, console: Console, hardware: str = ""
) -> None:
    """Write ``report.md``, ``results.json`` and the figures.

    Parameters
    ----------
    study : Path
        Folder of runs, or what its file is named after; see :mod:`..records`.
    results : Path
        Folder to write.
    console : Console
        Is told what was written.
    hardware : str (default: "")
        What the runs ran on; "" reads it from this machine.

    Raises
    ------
    ValueError
        If there is no finished run.
    """
    found = read_runs(study)
    results.mkdir(parents=True, exist_ok=True)
    tasks = found.by_task()
    sizes, unbuilt = _measure_sizes(tasks)
    tables = Tables(
        study,
        found,
        {t: accuracy_table(m) for t, m in _only(tasks, METHODS | LONGER).items()},
        {t: cost_table(m) for t, m in _only(tasks, METHODS).items()},
        sizes,
        hardware or _this_machine(),
    )
    drawn, numbers, skipped = _draw_figures(tasks, results)
    text = [
        *(f"# The comparison, scale {found.scale}", ""),
        *_what_was_run(tables),
        *_tables(tables),
        *("## Figures", ""),  # and what is left out, figure or table
        *(f"![{path.stem}]({path.name})\n" for path in drawn),
        *(f"- {line}" for line in unbuilt + skipped),
    ]
    write_atomically(results / "report.md", "\n".join(text) + "\n")
    figures_of = {
        "totals": _ledger_totals(found.outcomes),
        "table_iii": _describe(tables.accuracy),
        "table_iv": sizes,
        "table_v": _describe(tables.cost),
        "figures": numbers,
        "refused": [[*key, reason] for key, reason in found.refused.items()],
    }
    write_atomically(results / "results.json", _to_json(figures_of))
    console.print(
        f"{len(found.outcomes)} runs. Written: {results}/report.md, results.json, "
        f"{', '.join(path.name for path in drawn) or 'no figure'}."
    )


def _only(tasks: Mapping[str, Methods], names: Mapping[str, Any]) -> dict[str, Methods]:
    return {
        task: {name: runs for name, runs in methods.items() if name in names}
        for task, methods in tasks.items()
    }


def _measure_sizes(
    tasks: Mapping[str, Methods],
) -> tuple[dict[str, Sizes], list[str]]:
    """Build Table IV; say which tasks' networks cannot be built any more."""
    sizes, unbuilt = {}, []
    for task, methods in tasks.items():
        try:
            if table := size_table(methods):
                sizes[task] = table
        except (ValueError, TypeError) as error:  # runs of an older program
            unbuilt.append(f"Table IV, {task}, is left out: {error}")
    return sizes, unbuilt


def _describe(tables: Mapping[str, Table]) -> dict[str, Any]:
    """Turn cells into what JSON takes."""
    return {
        task: {
            method: {column: cell.describe() for column, cell in row.items()}
            for method, row in table.items()
        }
        for task, table in tables.items()
    }


def _to_json(found: Mapping[str, Any]) -> str:
    """Write a line a part, so that versions can be compared."""
    parts = (f"{json.dumps(key)}: {json.dumps(part)}" for key, part in found.items())
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _ledger_totals(outcomes: list[Outcome]) -> dict[str, float]:
    """Add up what all runs moved, computed and took."""
    results = [one.result for one in outcomes]
    return {
        "runs": len(results),
        "bytes": sum(result["bytes"][-1] for result in results),
        "macs": sum(result["macs"][-1] for result in results),
        "seconds": sum(result["seconds"] for result in results),
        "lost_replies": sum(result["lost"] for result in results),
    }


def _this_machine() -> str:
    """Say what the program runs on, without its name."""
    system, kind = platform.system(), platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} CPU cores ({system}, {kind}){gpu}"


# --- The page ---


def _what_was_run(tables: Tables) -> list[str]:
    """Say what there is, what it was made with, and what is missing."""
    found = tables.found
    lines = [
        f"Scale {found.scale}: {_totals(found.outcomes)}.",
        f"Hardware: {tables.hardware}.",
        *_made_with(found.outcomes),
        *_lost(found.outcomes),
    ]
    lines += [
        f"Refused, {task}, {EVERYTHING[method].title}: {reason}"
        for (task, method), reason in found.refused.items()
    ]
    return ["## What was run", "", *(f"- {line}" for line in lines), ""]


def _made_with(outcomes: list[Outcome]) -> list[str]:
    """Say what runs were made with: a line for each commit, versions and machine."""
    made_with = (one.result.get("provenance", {}) for one in outcomes)
    lines = Counter(describe_made({**made, "date": ""}) for made in made_with)
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


def _tables(tables: Tables) -> list[str]:
    """Write all tables, each with the command that makes it."""
    small = tables.found.scale == "small"
    reasons = (*REASONS, SMALL_SCALE) if small else REASONS
    accuracy, cost = tables.accuracy, tables.cost

    def by_task(write: Callable[[str, int], str]) -> list[str]:
        lines = []
        for task, table in accuracy.items():
            counts = [
                len(row["rounds"].values) for n, row in table.items() if n in METHODS
            ]
            if counts:  # else ablations only
                seeds = max(counts)
                lines += [f"### {task}, {seeds} seed(s)", "", write(task, seeds)]
                lines += [_made_by(tables, task), ""]
        return lines

    return [
        *("## In short", "", MEASURED_BY["short"], ""),
        *by_task(lambda t, seeds: summary_markdown(accuracy[t], cost[t], seeds)),
        *("## Table III: accuracy", "", MEASURED_BY["III"], ""),
        *by_task(lambda task, seeds: accuracy_markdown(accuracy[task], seeds)),
        *("### Beside the paper's, at equal rounds", ""),
        *(published_markdown(accuracy), BESIDE, ""),
        *(f"- {reason}" for reason in reasons),
        *("", "## Table IV: size", "", MEASURED_BY["IV"], ""),
        size_markdown(tables.sizes) if tables.sizes else "No run of AutoFLIP.\n",
        *(f"`{_report_command(tables)}`, on the runs of Table III.", ""),
        *("## Table V: communication", "", MEASURED_BY["V"], ""),
        *by_task(lambda task, _: cost_markdown(cost[task])),
        published_cost_markdown(list(cost)),
    ]


def _made_by(tables: Tables, task: str) -> str:
    """Give the command that makes a task's runs, what they cost, and where."""
    found, table = tables.found, tables.accuracy[task]
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
        f"--seeds {seeds} --scale {found.scale}`: {_totals(outcomes)}; "
        f"{tables.hardware}. Then `{_report_command(tables)}`."
    )


def _totals(outcomes: list[Outcome]) -> str:
    totals = _ledger_totals(outcomes)
    return (
        f"{totals['runs']} runs, {totals['bytes'] / 1e9:,.2f} GB moved, "
        f"{totals['macs'] / 1e12:,.3f} TMACs computed, {totals['seconds']:,.0f} s, "
        f"{totals['lost_replies']} replies lost"
    )


def _report_command(tables: Tables) -> str:
    return f"python -m examples.paper report --out {tables.study.as_posix()}"


# --- Figures ---


def _draw_figures(
    tasks: Mapping[str, Methods], folder: Path
) -> tuple[list[Path], dict[str, Any], list[str]]:
    """Draw what there are runs for.

    Gives the files, the numbers in them, and why others are not there.
    """
    drawn: list[Path] = []
    numbers: dict[str, Any] = {}
    skipped: list[str] = []

    def add(name: str, found: Any, draw: Callable[..., None], *first: Any) -> None:
        path = folder / f"{name}.png"
        draw(*first, path)
        drawn.append(path)
        numbers[name] = found

    for number, title, gather, draw in (
        (4, "variance", series.variances, figures.draw_variances),
        (8, "exploration", series.exploration, figures.draw_exploration),
        (9, "threshold", series.thresholds, figures.draw_thresholds),
    ):
        found = {t: got for t, methods in tasks.items() if (got := gather(methods))}
        if found:
            add(f"figure{number}-{title}", found, draw, found)
        else:
            skipped.append(f"Figure {number} ({title}) is left out: no run for it.")
    for task, methods in tasks.items():
        if lines := series.curves(methods):
            rounds = next(iter(methods.values()))[0].equal_rounds
            add(f"figure7-{task}", lines, figures.draw_curves, task, lines, rounds)
        else:
            skipped.append(f"Figure 7, {task}, is left out: no run for it.")
    return sorted(drawn), numbers, sorted(skipped)
