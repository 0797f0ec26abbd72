"""What was tried for the default, one table a task.

``python -m examples.paper.study --out runs/studies`` reads the runs that
``python -m examples.paper run --methods fedavg,size --evaluate-on validation --out
runs/studies`` made. A task needs FedAvg's run.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from .markdown import markdown_table
from .methods import EVERYTHING
from .paired import Compared, Difference, compare
from .results import by_method, read_runs, tasks_of
from .tables import BASELINE, Cell

HEADER = (
    "method", "top-1", "to FedAvg, points", "to its rival, points", "MACs", "bytes",
    "seeds",
)  # fmt: skip


def show_difference(found: Difference | None) -> str:
    """Write points and the interval; bold where 0 is outside of it."""
    if found is None:
        return "-"
    text = f"{100 * found.mean:+.1f}"
    if found.half_width is not None:
        text += f" ±{100 * found.half_width:.1f}"
    return f"**{text}**" if found.certain else text


def show_cost(cell: Cell, seeds: int) -> str:
    """Write a mean share, and how many of these seeds never got there."""
    if not seeds:
        return "-"
    if not cell.values:
        return "never"
    missing = seeds - len(cell.values)
    return f"{cell.mean:.2f}" + (f" ({missing} never)" if missing else "")


def study_markdown(compared: Mapping[str, Compared]) -> str:
    """Write one task's table."""
    rows = []
    for name, one in compared.items():
        # Where FedAvg has no run there is no accuracy to reach.
        shared = one.to_baseline.seeds if one.to_baseline else 0
        rows.append(
            [
                EVERYTHING[name].title,
                f"{one.top1.mean:.3f}",
                "" if name == BASELINE else show_difference(one.to_baseline),
                show_difference(one.to_rival),
                show_cost(one.macs, shared),
                show_cost(one.bytes_moved, shared),
                str(len(one.top1.values)),
            ]
        )
    return markdown_table(HEADER, rows)


def main() -> None:
    """Print a table a task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    parser.add_argument("--scale", default="small", choices=["tiny", "small", "paper"])
    options = parser.parse_args()
    found = read_runs(options.out / options.scale)
    rivals = {name: method.rival for name, method in EVERYTHING.items()}
    for task in tasks_of(found.outcomes):
        methods = by_method(found.outcomes, task)
        if BASELINE in methods:
            print(f"### {task}\n\n{study_markdown(compare(methods, rivals))}")
        else:
            print(f"### {task}\n\nno table: run --methods {BASELINE}, too\n")


if __name__ == "__main__":
    main()
