"""What a policy is, and what policies share."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from logging import getLogger
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import AutoFlipError, AutoFlipWarning
from ..graph.layout import Arrays, Layout, TensorSpec
from ..graph.plan import Plan, dense_plan, keep_from_bool
from .allocate import allocate, floors
from .guidance import Report, unit_scores
from .statistics import Running
from .threshold import (
    Compression,
    Cost,
    Kept,
    MacShare,
    Threshold,
    keep_top,
    parse_threshold,
    select,
)

LOGGER = getLogger("flwr")

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
        At least the best unit of every group stays; and a tenth of its units, rounded
        up, unless counts say otherwise.

    Warns
    -----
    AutoFlipWarning
        If that is more than the threshold asks for.
    """
    if isinstance(threshold, Mapping):
        _check_counts(layout, threshold)
        chosen = {name: keep_top(s, threshold[name]) for name, s in scores.items()}
        kept = keep_least(chosen, scores, dict.fromkeys(scores, 1))
    else:
        kept = _choose(layout, scores, threshold)
    kept = {
        name: choice | keep_top(scores[name], -(-choice.sum() // round_to) * round_to)
        for name, choice in kept.items()
    }
    return Plan(layout, keep_from_bool(kept))


def _choose(
    layout: Layout, scores: Mapping[str, NDArray[Any]], threshold: Threshold
) -> Kept:
    """Choose by a threshold, and say so where floors keep more than it asks for."""
    least, costs = floors(layout), unit_costs(layout)
    if isinstance(threshold, MacShare) and np.isfinite(threshold.exponent):
        counts = allocate(layout, threshold.share, threshold.exponent, least)
        chosen = {name: keep_top(s, counts[name]) for name, s in scores.items()}
    else:
        chosen = select(scores, threshold, costs, least)
    kept = keep_least(chosen, scores, least)
    match threshold:
        case MacShare(share):
            _warn_above(layout, threshold, "MACs", share, costs[MacShare](kept))
        case Compression(factor):
            reached = costs[Compression](kept)
            _warn_above(layout, threshold, "parameters", 1 / factor, reached)
        case _:
            _warn_lifted(layout, threshold, chosen, kept)
    return kept


def _warn_above(
    layout: Layout, threshold: Threshold, what: str, target: float, reached: float
) -> None:
    if reached <= target * (1 + 1e-9):
        return
    fixed = layout.fixed_layers
    without = f" Layers without prunable units, {fixed}, are not counted." * bool(fixed)
    _warn(
        layout,
        f"{threshold} is out of reach: it asks for {target:.3g} of the {what} that can "
        f"shrink, and the fewest units, a tenth of every group, have {reached:.3g}. "
        f"The plan keeps those.{without} {_TO_KEEP_FEWER}",
    )


def _warn_lifted(
    layout: Layout, threshold: Threshold, chosen: Kept, kept: Kept
) -> None:
    # The best unit of an emptied group stayed ever since; that is no surprise.
    lifted = [n for n, c in kept.items() if c.sum() > max(1, chosen[n].sum())]
    if lifted:
        _warn(
            layout,
            f"{threshold} keeps less than a tenth of the units of {lifted}; a tenth "
            f"stays. {_TO_KEEP_FEWER}",
        )


_TO_KEEP_FEWER = (
    "Ask for more; or, to keep fewer, give units a group (not for policy='autoflip')."
)


def _warn(layout: Layout, text: str) -> None:
    warnings.warn(text, AutoFlipWarning, stacklevel=5)
    _log_once(layout, text)


@lru_cache(maxsize=16)
def _log_once(layout: Layout, text: str) -> None:
    """Log what every new plan of a run would say again."""
    LOGGER.warning("\t> %s", text)


def _check_counts(layout: Layout, counts: UnitCounts) -> None:
    sizes = {group.name: group.size for group in layout.groups}
    if set(counts) != set(sizes) or min(counts.values()) < 0:
        raise AutoFlipError(
            f"units a group must be a number for each of {sizes}, got {dict(counts)}."
        )


def keep_least(
    kept: Kept, scores: Mapping[str, NDArray[Any]], least: Mapping[str, int]
) -> Kept:
    """Let so many best-scored units of a group stay that has fewer."""
    return {
        name: choice
        if choice.sum() >= least[name]
        else keep_top(scores[name], least[name])
        for name, choice in kept.items()
    }


def unit_costs(layout: Layout) -> dict[type, Cost]:
    """Say what a choice of units costs, as shares of what can shrink.

    Layers that no unit touches cost the same whatever is chosen, and are left out.
    """
    dense = dense_plan(layout)
    never = [t for t in layout.tensors if t.name in layout.fixed]
    fixed_parameters = sum(t.size for t in never if t.trainable)
    fixed_macs = sum(t.macs_per_weight * t.size for t in never)

    def parameters(kept: Kept) -> float:
        plan = Plan(layout, keep_from_bool(kept))
        return (plan.num_parameters - fixed_parameters) / (
            dense.num_parameters - fixed_parameters
        )

    def macs(kept: Kept) -> float:
        if dense.macs == fixed_macs:
            raise AutoFlipError(
                "no layer that can shrink multiplies, so a share of the MACs chooses "
                "nothing; give a number of parameters such as threshold='2x'."
            )
        plan = Plan(layout, keep_from_bool(kept))
        return (plan.macs - fixed_macs) / (dense.macs - fixed_macs)

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
    """Single weights inside a plan: their share of the parameters that can go."""

    def parameters(kept: Mapping[str, NDArray[np.bool_]]) -> float:
        gone = sum(mask.size - int(np.count_nonzero(mask)) for mask in kept.values())
        stays = layout.fixed - set(kept)
        never = sum(t.size for t in layout.tensors if t.trainable and t.name in stays)
        return (plan.num_parameters - gone - never) / (layout.num_parameters - never)

    def macs(kept: Mapping[str, NDArray[np.bool_]]) -> float:
        raise AutoFlipError(
            "single weights that go save no MACs, so 'macs:...' cannot choose them; "
            "use it with units='score'."
        )

    return {Compression: parameters, MacShare: macs}
