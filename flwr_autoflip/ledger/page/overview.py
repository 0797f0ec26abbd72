"""The page's first screen: what happened, in a sentence and some figures."""

from collections.abc import Sequence
from typing import Any

from .curves import WINDOW
from .frame import card, section
from .runs import Run, summarise
from .svg import amount, escape, percent, share_of
from .tables import UNKNOWN, Cell, failed, macs_cell, table


def lead(runs: Sequence[Run]) -> str:
    """Say in a sentence or two what happened."""
    if len(runs) > 1:
        said = "Side by side, by the same measure; exploring is in every total."
        return said + _gaps([summarise(run) for run in runs])
    found = summarise(runs[0])
    said = f"{found['rounds']} rounds, {found['nodes']} nodes."
    kept = share_of(found["parameters"], found["dense_parameters"])
    if kept is not None:
        said += f" The model that would be deployed keeps {percent(kept)} of the "
        said += "parameters."
    share = share_of(found["saved_bytes"], found["dense_bytes"])
    if share is not None:
        words = "less" if share >= 0 else "more"
        said += (
            f" Nodes moved {percent(abs(share))} {words} bytes than the dense model's "
            "messages would have, exploring included."
        )
    return said + _gaps([found])


def _gaps(found: Sequence[dict[str, Any]]) -> str:
    """Say what is missing in the figures; nothing if they are whole."""
    unknown, unreadable = (
        sum(run[key] for run in found) for key in ("unknown_macs", "unreadable_rows")
    )
    said = f" MACs of {unknown} messages are unknown." if unknown else ""
    if unreadable:
        said += f" {unreadable} lines of the ledger could not be read and are left out."
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
    for name, key in (("parameters", "parameters"), ("MACs", "macs_per_example")):
        small, dense = found[key], found[f"dense_{key}"]
        if (kept := share_of(small, dense)) is not None:
            beside = f"{amount(small)} of {amount(dense)}"
            tiles.append((f"{name} kept", percent(kept), beside))
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
    beside = ""
    if spent is not None and exploring is not None:
        beside = f"exploring {percent(exploring / max(1, spent))}"
    if missing := found["unknown_macs"]:
        beside = f"unknown for {missing} of {len(run.nodes)} messages"
    tiles.append(("client MACs", macs_cell(spent, missing).shown, beside))
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
        value = share_of(found[part], found[whole])
        return UNKNOWN if value is None else Cell(percent(value), value)

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
        macs_cell(found["client_macs"], found["unknown_macs"]),
        failed(found["failures"]),
    ]
