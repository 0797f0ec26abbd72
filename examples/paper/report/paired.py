"""``python -m examples.paper compare``: methods seed by seed, beside FedAvg."""

import math
from dataclasses import dataclass

from scipy import stats

from ..methods import EVERYTHING
from ..records import Methods
from .tables import BASELINE, Cell, accuracy_table, cost_table, markdown_table

CONFIDENCE = 0.95
HEADER = ("method", "top-1", "to FedAvg, points", "MACs", "bytes", "seeds")


@dataclass(frozen=True)
class Difference:
    """A mean over seeds that both methods have.

    Parameters
    ----------
    mean : float
        Of one minus the other.
    half_width : float or None
        Of the confidence interval (95 %, Student's t); None for a single seed.
    seeds : int
    """

    mean: float
    half_width: float | None
    seeds: int

    def __str__(self) -> str:
        """Write points and the interval; bold where 0 is outside of it."""
        text = f"{100 * self.mean:+.1f}"
        if self.half_width is None:
            return text
        text += f" ±{100 * self.half_width:.1f}"
        return f"**{text}**" if abs(self.mean) > self.half_width else text


def difference(one: Cell, other: Cell) -> Difference | None:
    """Subtract, seed by seed.

    Parameters
    ----------
    one, other : Cell

    Returns
    -------
    Difference or None
        None if they share no seed.

    Examples
    --------
    >>> found = difference(Cell({0: 0.5, 1: 0.7}), Cell({0: 0.4, 1: 0.5, 2: 0.9}))
    >>> round(found.mean, 3), round(found.half_width, 3), found.seeds
    (0.15, 0.635, 2)
    """
    seeds = sorted(set(one.values) & set(other.values))
    if not seeds:
        return None
    apart = Cell({seed: one.values[seed] - other.values[seed] for seed in seeds})
    if apart.deviation is None:
        return Difference(apart.mean, None, 1)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1)
    half = float(quantile * apart.deviation / math.sqrt(len(seeds)))
    return Difference(apart.mean, half, len(seeds))


def paired_markdown(methods: Methods) -> str:
    """Write one task's table.

    Parameters
    ----------
    methods : mapping of str to sequence of Outcome

    Returns
    -------
    str
        Top-1 at FedAvg's rounds, its difference to FedAvg's, and MACs and bytes to
        FedAvg's final top-1 over what that took.
    """
    if BASELINE not in methods:
        return f"No table: run --methods {BASELINE}, too.\n"
    top1 = {name: row["rounds"] for name, row in accuracy_table(methods).items()}
    costs = cost_table(methods)
    rows = []
    for name, cell in top1.items():
        found = difference(cell, top1[BASELINE])
        seeds = found.seeds if found else 0
        apart = "" if name == BASELINE else str(found or "-")
        saved = [costs.get(name, {}).get(c) for c in ("macs_saved", "bytes_saved")]
        shares = [_share(one, seeds) for one in saved]
        figures = [f"{cell.mean:.3f}", apart, *shares, str(len(cell.values))]
        rows.append([EVERYTHING[name].title, *figures])
    return markdown_table(HEADER, rows)


def _share(saved: Cell | None, seeds: int) -> str:
    """Write a mean share, and how many of these seeds never got there."""
    if saved is None or not saved.values:
        return "never" if seeds else "-"
    missing = seeds - len(saved.values)
    return f"{1 - saved.mean:.2f}" + (f" ({missing} never)" if missing else "")
