"""What a policy is, and what policies share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..core.allocate import allocate
from ..core.errors import AutoFlipError
from ..core.guidance import Report, unit_scores
from ..core.layout import Arrays, Layout, TensorSpec
from ..core.plan import Plan, dense_plan, keep_from_bool
from ..core.statistics import Running
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


Renewal = Literal["never", "round", "weights"]
"""When a plan is made anew; see :class:`Policy`."""
OnChange = Literal["keep", "restart", "grow"]
"""What becomes of weights when a plan changes; see :class:`Policy`."""


@dataclass(frozen=True)
class Previous:
    """The plan that holds when a new one is made.

    Parameters
    ----------
    plan : Plan
    since : int
        First round in which it held; 0 if it was made before the rounds.
    """

    plan: Plan
    since: int


class Policy(ABC):
    """Decides who stays; inherit from it, and change what differs.

    Attributes
    ----------
    explores : bool
        Needs explorers' reports.
    max_explorers : int or None
        How many nodes explore before round 1 at most.
    per_round : bool
        Makes a plan every round from the explorers' reports of that round's
        participants; otherwise all explorers count.
    renewed : {"never", "round", "weights"}
        ``"never"``: the plan of all explorers is evaluated and deployed. ``"round"``:
        a plan is made before round 1 and anew at the start of every round, from the
        weights, what was probed in the round before, and the plan that held; the last
        one is evaluated and deployed. ``"weights"``: likewise, but what is evaluated
        has a plan of its own weights.
    running : Running or None
        The sums and extremes that the server keeps as reports come; None where a plan
        looks at single reports, which are read from disk then.
    on_change : {"keep", "restart", "grow"}
        With ``renewed``, what becomes of weights when the plan changes. ``"keep"``:
        nothing. ``"restart"``: they start from the initial ones. ``"grow"``: plans only
        grow, and units come in without changing what the model computes.
    """

    explores: ClassVar[bool] = False
    max_explorers: ClassVar[int | None] = None
    renewed: ClassVar[Renewal] = "never"

    @property
    def per_round(self) -> bool:
        """Whether a round's participants decide."""
        return False

    @property
    def running(self) -> Running | None:
        """What the server keeps of all reports as they come."""
        return None

    @property
    def on_change(self) -> OnChange:
        """What becomes of weights when the plan changes."""
        return "keep"

    @property
    def rescales(self) -> bool:
        """Whether a first plan's weights may make up for lost inputs.

        Where plans are made anew from the weights, that would tell them another story.
        """
        return self.renewed == "never" or self.on_change == "grow"

    def probes(self, server_round: int) -> bool:
        """Tell whether nodes also send gradients in this round, for the next plan."""
        return False

    def unit_guidance(
        self, layout: Layout, reports: Sequence[Report]
    ) -> Mapping[str, NDArray[Any]]:
        """Score units by guidance, for a look at a run; empty without guidance.

        Parameters
        ----------
        layout : Layout
        reports : sequence of Report
            Deviations of all explorers.

        Returns
        -------
        mapping of str to ndarray
            Group name to ``(group.size,)`` in [0, 1].
        """
        return {}

    def rank_units(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
    ) -> Mapping[str, NDArray[Any]]:
        """Score units for nodes that carry less than the plan.

        By the mean absolute value of their own parameters, unless a policy has scores
        that say more.

        Parameters
        ----------
        server_round : int
        layout : Layout
        weights : mapping of str to ndarray
            Global dense arrays.
        reports : sequence of Report
            Deviations of all explorers.

        Returns
        -------
        mapping of str to ndarray
            Group name to ``(group.size,)``; the lowest go first.
        """
        sizes = {t.name: np.abs(weights[t.name]) for t in layout.tensors if t.trainable}
        return unit_scores(layout, sizes)

    @abstractmethod
    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
        previous: Previous | None = None,
    ) -> Plan:
        """Make a plan.

        Parameters
        ----------
        server_round : int
            0 before the first round.
        layout : Layout
        weights : mapping of str to ndarray
            Global dense arrays.
        reports : sequence of Report
            Deviations of the explorers, or of this round's participants. With
            ``renewed``, once there is a plan: squared gradients of the round before,
            summed over its nodes by examples, if it probed. Otherwise empty.
        previous : Previous or None
            With ``renewed``, the plan that holds; None for the first.

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
    if isinstance(threshold, MacShare) and np.isfinite(threshold.exponent):
        threshold = allocate(layout, threshold.share, threshold.exponent)
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


def weight_tensors(layout: Layout) -> list[TensorSpec]:
    """List what methods for single weights prune: kernels and matrices.

    Biases and normalisation layers, one value a unit, are left alone.
    """
    return [t for t in layout.tensors if t.trainable and len(t.shape) >= 2]


def weight_costs(layout: Layout, plan: Plan) -> dict[type, Cost]:
    """Single weights inside a plan: their share of the dense model's parameters."""
    fixed = plan.num_parameters

    def parameters(kept: Mapping[str, NDArray[np.bool_]]) -> float:
        gone = sum(mask.size - int(np.count_nonzero(mask)) for mask in kept.values())
        return (fixed - gone) / layout.num_parameters

    def macs(kept: Mapping[str, NDArray[np.bool_]]) -> float:
        raise AutoFlipError(
            "single weights that go save no MACs, so 'macs:...' cannot choose them; "
            "use it with units='score'."
        )

    return {Compression: parameters, MacShare: macs}
