"""The protocol of a policy, and what policies over unit scores share."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from ..core.errors import AutoFlipError
from ..core.guidance import Report
from ..core.layout import Arrays, Layout
from ..core.plan import Plan, dense_plan, keep_from_bool
from ..core.threshold import (
    Compression,
    Cost,
    Kept,
    MacShare,
    Threshold,
    keep_top,
    parse_threshold,
    select,
)

UnitCounts = Mapping[str, int]
"""Group name to how many of its units stay."""


class Policy(Protocol):
    """Decides who stays.

    Attributes
    ----------
    explores : bool
        Needs explorers' reports.
    per_round : bool
        Makes a plan every round from that round's participants; otherwise one plan
        from all explorers serves the whole run and travels once.
    """

    @property
    def explores(self) -> bool: ...

    @property
    def per_round(self) -> bool: ...

    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
    ) -> Plan:
        """Make a plan.

        Parameters
        ----------
        server_round : int
        layout : Layout
        weights : mapping of str to ndarray
            Global dense arrays.
        reports : sequence of Report
            Deviations of the explorers, or of this round's participants; empty for a
            policy that does not explore.

        Returns
        -------
        Plan
        """


def unit_plan(
    layout: Layout,
    scores: Mapping[str, NDArray[Any]],
    threshold: Threshold | UnitCounts,
    round_to: int = 1,
) -> Plan:
    """Keep the units that a threshold (or a count a group) chooses by score.

    Parameters
    ----------
    layout : Layout
    scores : mapping of str to ndarray
        Group name to ``(group.size,)``.
    threshold : Threshold or mapping of str to int
    round_to : int (default: 1)
        Keep a multiple of this many units a group, more rather than fewer.

    Returns
    -------
    Plan
        At least the best unit of every group stays.
    """
    if isinstance(threshold, Mapping):
        _check_counts(layout, threshold)
        kept = {name: keep_top(s, threshold[name]) for name, s in scores.items()}
    else:
        kept = select(scores, threshold, unit_costs(layout))
    kept = {
        name: choice | keep_top(scores[name], -(-choice.sum() // round_to) * round_to)
        for name, choice in keep_one(kept, scores).items()
    }
    return Plan(layout, keep_from_bool(kept))


def _check_counts(layout: Layout, counts: UnitCounts) -> None:
    sizes = {group.name: group.size for group in layout.groups}
    if set(counts) != set(sizes) or min(counts.values()) < 0:
        raise AutoFlipError(
            f"units a group must be a number for each of {sizes}, got {dict(counts)}."
        )


def keep_one(kept: Kept, scores: Mapping[str, NDArray[Any]]) -> Kept:
    """Let the best-scored unit of an emptied group stay."""
    return {
        name: choice if choice.any() else keep_top(scores[name], 1)
        for name, choice in kept.items()
    }


def unit_costs(layout: Layout) -> dict[type, Cost]:
    """Say what a choice of units costs, as shares of the dense model."""
    dense = dense_plan(layout)

    def parameters(kept: Kept) -> float:
        plan = Plan(layout, keep_from_bool(kept))
        return plan.num_parameters / dense.num_parameters

    def macs(kept: Kept) -> float:
        return Plan(layout, keep_from_bool(kept)).macs / dense.macs

    return {Compression: parameters, MacShare: macs}


def parse_units(value: Any) -> Threshold | UnitCounts:
    """Read a threshold, or counts such as ``"conv1=8,fc1=32"`` or a mapping."""
    if isinstance(value, str) and "=" in value:
        pairs = [pair.partition("=") for pair in value.split(",")]
        if not all(count.strip().isdecimal() for _, _, count in pairs):
            raise AutoFlipError(
                f"units a group must read 'conv1=8,fc1=32', got {value!r}."
            )
        return {name.strip(): int(count) for name, _, count in pairs}
    return value if isinstance(value, Mapping) else parse_threshold(value)
