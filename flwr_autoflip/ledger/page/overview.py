"""The page's first screen: what happened, in a sentence and some figures."""

from collections.abc import Sequence

from ..amounts import amount, percent, ratio
from .curves import WINDOW
from .html import UNKNOWN, Cell, card, escape, failure_cell, macs_cell, section, table
from .runs import Run, summarise


def lead(runs: Sequence[Run]) -> str:
    """Say in a sentence or two what happened."""
    found = [summarise(run) for run in runs]
    said = ["Side by side, by the same measure; exploring is in every total."]
    if len(runs) == 1:
        said = [f"{found[0]['rounds']} rounds, {found[0]['nodes']} nodes."]
        kept = ratio(found[0]["parameters"], found[0]["dense_parameters"])
        saved = ratio(found[0]["saved_bytes"], found[0]["dense_bytes"])
        if kept is not None:
            words = "The model that would be deployed keeps {} of the parameters."
            said.append(words.format(percent(kept)))
        if saved is not None:
            words = "less" if saved >= 0 else "more"
            said.append(
                f"Nodes moved {percent(abs(saved))} {words} bytes than the dense "
                "model's messages would have, exploring included."
            )
    for key, words in (
        ("unknown_macs", "MACs of {} messages are unknown."),
        ("unreadable_rows", "{} lines of the ledger could not be read."),
    ):
        if count := sum(run[key] for run in found):
            said.append(words.format(count))
    return " ".join(said)


def figures(run: Run) -> dict[str, Cell]:
    """Give a run's main figures by their names."""
    found = summarise(run)
    down, up, dense = (
        found[f"{key}"] for key in ("bytes_down", "bytes_up", "dense_bytes")
    )
    moved, explored = down + up, found["exploration_bytes"]
    messages, unknown = len(run.nodes), found["unknown_macs"]
    part = ratio(found["exploration_macs"], found["client_macs"])
    work = "" if part is None else f"exploring {percent(part)}"
    if unknown:
        work = f"unknown for {unknown} of {messages} messages"
    of_dense = "" if dense is None else f"dense {amount(dense, 'B')}"
    of_all = f"{percent(ratio(explored, moved) or 0)} of all bytes"
    return {
        "rounds": Cell(str(run.rounds), run.rounds, beside=f"{found['nodes']} nodes"),
        "accuracy": _value(found["value"], f"{run.metric}, last {WINDOW}"),
        "dense accuracy": _value(found["dense_value"], "global dense model"),
        "parameters kept": _part(found["parameters"], found["dense_parameters"]),
        "MACs kept": _part(found["macs_per_example"], found["dense_macs_per_example"]),
        "bytes moved": Cell(amount(moved, "B"), moved, beside=of_dense),
        "exploring": Cell(amount(explored, "B"), explored, beside=of_all),
        "bytes saved": _part(found["saved_bytes"], dense, "B"),
        "client MACs": macs_cell(found["client_macs"], unknown, work),
        "failures": failure_cell(found["failures"], f"of {messages} messages"),
    }


def _value(value: float | None, beside: str) -> Cell:
    return UNKNOWN if value is None else Cell(f"{value:.3f}", value, beside=beside)


def _part(part: float | None, whole: float | None, unit: str = "") -> Cell:
    if part is None or not whole:
        return UNKNOWN
    beside = f"{amount(part, unit)} of {amount(whole, unit)}"
    return Cell(percent(part / whole), part / whole, beside=beside)


def overview(runs: Sequence[Run]) -> str:
    """Write a run's main figures, or several runs' side by side."""
    found = [figures(run) for run in runs]
    if len(runs) == 1:
        tiles = "".join(
            f'<div><dt>{escape(name)}</dt><dd class="value">{escape(cell.shown)}</dd>'
            f'<dd class="beside">{escape(cell.beside)}</dd></div>'
            for name, cell in found[0].items()
            if cell is not UNKNOWN
        )
        return f'<dl class="figures">{tiles}</dl>'
    names = [n for n in found[0] if any(cells[n] is not UNKNOWN for cells in found)]
    rows = [
        [Cell(run.name, kind="name"), *(cells[name] for name in names)]
        for run, cells in zip(runs, found, strict=True)
    ]
    note = (
        f"Accuracy is the mean of the last {WINDOW} evaluations of the model that "
        "would be deployed, then of the global dense one; parameters and MACs are "
        "ratios of the dense model's; saved is against the dense model's own messages."
    )
    return section("Side by side", note, card(table(["run", *names], rows)))
