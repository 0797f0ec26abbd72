"""The page's look inside the model: units kept, and the guidance that chose them."""

from collections.abc import Sequence
from typing import Any

from .charts import histogram
from .frame import card, grid, section
from .heat import strip
from .runs import Run, dense_units, shares_kept, units_kept
from .svg import escape

SHOWN_GROUPS = 12
"""Histograms a run before the others hide behind a click."""


def units(runs: Sequence[Run]) -> str:
    """Draw the units that each group of layers kept over the rounds."""
    cards = [_heat_map(run, len(runs) > 1) for run in runs if units_kept(run)]
    note = "Filters and neurons that stay in each group of layers that live or die "
    note += "together. A dark cell keeps all, a faint one few."
    if not cards:
        return section("Units kept", "These ledgers hold no plan.")
    ramp = '<span class="ramp"></span>'
    key = f'<ul class="legend"><li>0 %{ramp}100 % of the units</li></ul>'
    kind = "grid2" if len(cards) > 1 else "grid1"
    return section("Units kept", note, key, grid(kind, *cards))


def _heat_map(run: Run, named: bool) -> str:
    kept, shares, dense = units_kept(run), shares_kept(run), dense_units(run)
    parts = []
    for name, counts in kept.items():
        last = f"{counts[-1]} of {dense[name]}" if name in dense else f"{counts[-1]}"
        parts.append(f'<span class="name">{escape(name)}</span>')
        parts.append(strip(shares[name], name))
        parts.append(f'<span class="many">{last}</span>')
    parts.append('<span class="empty"></span>')
    parts.append(
        f'<span class="ends"><span>round 0</span><span>{run.rounds}</span></span>'
    )
    missing = "" if dense else (
        '<p class="note">The ledger does not say how many units the dense model has: '
        "shares are of the most that was kept.</p>"
    )  # fmt: skip
    body = f'<div class="heatmap">{"".join(parts)}</div>'
    return card(missing, body, title=run.name if named else "")


def guidance(runs: Sequence[Run]) -> str:
    """Draw how guidance is spread over units, where ledgers hold it."""
    parts = []
    for run in runs:
        found = [row["importance"] for row in run.plans if row.get("importance")]
        if found:
            head = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
            parts.append(card(head, _histograms(found[0])))
    note = (
        "How far explorers moved a unit's own parameters (mean guidance, in [0, 1]), "
        "when the run's first plan was made. Units that matter lie right."
    )
    if not parts:
        note = (
            "No ledger here holds guidance: nobody explored, or it is older than that."
        )
        return section("Guidance", note)
    key = (
        '<ul class="legend"><li><span class="key kept"></span>units that stay</li>'
        '<li><span class="key gone"></span>units that go</li></ul>'
    )
    return section("Guidance", note, key, *parts)


def _histograms(groups: dict[str, Any]) -> str:
    drawn = [
        f'<div><h3 class="name">{escape(name)}</h3>{histogram(counts)}</div>'
        for name, counts in groups.items()
    ]
    first, rest = drawn[:SHOWN_GROUPS], drawn[SHOWN_GROUPS:]
    more = (
        f"<details><summary>{len(rest)} more</summary>{grid('small', *rest)}</details>"
    )
    return grid("small", *first) + (more if rest else "")
