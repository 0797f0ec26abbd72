"""Differences between methods, seed by seed, with what they may be worth."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from .results import Outcome
from .tables import BASELINE, Cell, Table, accuracy_table, cost_table

CONFIDENCE = 0.95


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

    @property
    def certain(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.half_width is not None and abs(self.mean) > self.half_width


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


@dataclass(frozen=True)
class Compared:
    """One method beside FedAvg, and beside what it has to beat.

    Parameters
    ----------
    top1 : Cell
        At FedAvg's rounds.
    to_baseline, to_rival : Difference or None
        Of ``top1``; the rival is another method of the same size.
    macs, bytes_moved : Cell
        What it took to reach FedAvg's final top-1, over what that took; only seeds
        that got there.
    """

    top1: Cell
    to_baseline: Difference | None
    to_rival: Difference | None
    macs: Cell
    bytes_moved: Cell


def compare(
    methods: Mapping[str, Sequence[Outcome]], rivals: Mapping[str, str]
) -> dict[str, Compared]:
    """Compare one task's methods.

    Parameters
    ----------
    methods : mapping of str to sequence of Outcome
        FedAvg is among them.
    rivals : mapping of str to str
        Method to the one that it has to beat.

    Returns
    -------
    dict of str to Compared
        In the given order.
    """
    top1 = {name: row["rounds"] for name, row in accuracy_table(methods).items()}
    costs = cost_table(methods)
    return {
        name: Compared(
            top1[name],
            difference(top1[name], top1[BASELINE]),
            difference(top1[name], top1[rivals[name]])
            if rivals.get(name) in top1
            else None,
            _spent(costs, name, "macs_saved"),
            _spent(costs, name, "bytes_saved"),
        )
        for name in methods
    }


def _spent(costs: Table, name: str, column: str) -> Cell:
    """Give what was not saved; empty where no seed has FedAvg's run beside."""
    saved = costs[name][column].values if name in costs else {}
    return Cell({seed: 1 - share for seed, share in saved.items()})
