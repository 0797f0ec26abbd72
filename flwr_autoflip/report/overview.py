"""The page's first screen: what happened, in a sentence and some figures."""

from collections.abc import Sequence
from html import escape
from typing import Any

from .curves import WINDOW
from .frame import card, section
from .runs import Run, summarise
from .svg import amount, percent
from .tables import UNKNOWN, Cell, failed, table


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
        failed(found["failures"]),
    ]
