"""Tables as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from .methods import EVERYTHING
from .published import AUTHORS_FILES, TABLE_III, TABLE_IV, TABLE_V
from .sizes import VARIANTS
from .tables import ACCURACY, COST, Cell, Row, Table, best_methods

FULLY_USED = 0.995
SIZE_HEADER = (
    "task", "network", "parameters", "zeros among them", "MACs", "MACs, THOP",
    "parameters saved", "MACs saved", "MACs saved, THOP", "step time",
)  # fmt: skip


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
    return text + count_of(cell, seeds)


def count_of(cell: Cell, seeds: int) -> str:
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
        title = EVERYTHING[name].title + count_of(row["rounds"], seeds)
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


def size_markdown(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Write Table IV."""
    rows = []
    for task, table in tables.items():
        for name in ("dense", *VARIANTS):
            if name in table:
                title = "dense" if name == "dense" else EVERYTHING[name].title
                rows.append([task, title, *_size_row(table[name], table["dense"])])
    return markdown_table(SIZE_HEADER, rows)


def _size_row(size: Mapping[str, Any], dense: Mapping[str, Any]) -> list[str]:
    kinds = ("parameters", "macs", "thop_macs")
    return [
        f"{size['parameters']:,.0f}",
        f"{size['zeros']:,.0f}",
        *(f"{size[kind] / 1e6:,.3f} M" for kind in kinds[1:]),
        *(f"{100 * (1 - size[kind] / dense[kind]):.1f} %" for kind in kinds),
        f"{size['time_ratio']:.2f}",
    ]


def published_markdown(tables: Mapping[str, Table]) -> str:
    """Write ours, the paper's and the authors' files' figures beside each other."""

    def cell(name: str, other: str, task: str) -> str:
        table = tables[task]
        ours = table[name]["rounds"] if name in table else Cell()
        figures = (
            f"{ours.mean:.3f}" if ours.values else "-",
            f"{TABLE_III[other][task]:.3f}",
            f"{AUTHORS_FILES[other][task]:.3f}" if other in AUTHORS_FILES else "-",
        )
        return " / ".join(figures)

    pairs = [(name, name) for name in TABLE_III]
    pairs += [(name, "autoflip") for name in ("autoflip-paper", "autoflip-authors")]
    rows = [
        [EVERYTHING[name].title, *(cell(name, other, task) for task in tables)]
        for name, other in pairs
    ]
    return markdown_table(("ours / paper / authors' files", *tables), rows)


def published_cost_markdown(tasks: Sequence[str]) -> str:
    """Write the paper's Tables IV and V."""
    rows = []
    for task in tasks:
        (rate, flops), (ours, dense, saved) = TABLE_IV[task], TABLE_V[task]
        figures = (f"{rate}x", f"{flops} %", f"{ours}", f"{dense}", f"{saved} %")
        rows.append([task, *figures])
    header = ("compression", "FLOPs saved", "rounds", "rounds, FedAvg", "cost saved")
    return markdown_table(("the paper's", *header), rows)
