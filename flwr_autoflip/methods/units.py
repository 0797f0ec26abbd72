"""What methods that choose whole units share."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from logging import getLogger

import numpy as np

from ..errors import AutoFlipError, AutoFlipWarning
from ..graph.layout import Layout, TensorSpec
from ..graph.plan import Plan, keep_from_bool
from .base import Method, S, Scores
from .threshold import (
    Compression,
    Kept,
    MacRatio,
    Threshold,
    ThresholdLike,
    allocate,
    floors,
    keep_top,
    parse_threshold,
    select,
    unit_costs,
)

LOGGER = getLogger("flwr")

UnitCounts = Mapping[str, int]
"""Group name to how many of its units are kept."""

MACS = 0.25
"""Ratio of the MACs that is kept where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class UnitMethod(Method[S]):
    """A method that keeps the units with the best scores.

    Parameters
    ----------
    macs : float, optional
        Ratio, in (0, 1], of the MACs that can shrink; 0.25 where ``threshold`` is left
        out, too. Layers without prunable units, such as ignored ones, come on top.
    threshold : float, str, Threshold or mapping, optional
        Another way to say how many: a short form, see :func:`.parse_threshold`, or
        units a group, ``"conv1=8,fc1=32"`` or a mapping.
    round_to : int (default: 1)
        Keep a multiple of this many units a group, such as 8 for some hardware.

    Raises
    ------
    AutoFlipError
        If both are given, or a value is none of these.
    """

    macs: float | None = None
    threshold: ThresholdLike | UnitCounts | None = None
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.macs is None and self.threshold is None:
            object.__setattr__(self, "macs", MACS)
        parse_target(self.macs, self.threshold)
        if not (isinstance(self.round_to, int) and self.round_to >= 1):
            raise AutoFlipError(f"round_to must be at least 1, got {self.round_to!r}.")

    @property
    def target(self) -> Threshold | UnitCounts:
        """How many units are kept."""
        return parse_target(self.macs, self.threshold) or MacRatio(MACS)

    def choose(self, layout: Layout, scores: Scores) -> Plan:
        """Make the plan of the best-scored units; see :func:`unit_plan`."""
        return unit_plan(layout, scores, self.target, self.round_to)


def parse_target(
    macs: float | None, threshold: ThresholdLike | UnitCounts | None
) -> Threshold | UnitCounts | None:
    """Read how many units are kept, from either way to say it; None if neither does.

    Raises
    ------
    AutoFlipError
        If both do, or a value cannot be read.
    """
    if macs is None:
        return None if threshold is None else _parse_units(threshold)
    if threshold is not None:
        raise AutoFlipError(
            f"macs={macs!r} and threshold={threshold!r} both say how much is kept; "
            "leave one of them out (macs=None)."
        )
    is_number = isinstance(macs, (int, float)) and not isinstance(macs, bool)
    if not (is_number and 0 < macs <= 1):
        raise AutoFlipError(
            f"macs is the ratio of the MACs that is kept, in (0, 1], got {macs!r}; "
            "for another measure give threshold, such as '2x' for the parameters."
        )
    return MacRatio(macs)


def _parse_units(value: ThresholdLike | UnitCounts) -> Threshold | UnitCounts:
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, str) or "=" not in value:
        return parse_threshold(value)
    pairs = [pair.partition("=") for pair in value.split(",")]
    if not all(count.strip().isdecimal() for _, _, count in pairs):
        raise AutoFlipError(f"units a group must read 'conv1=8,fc1=32', got {value!r}.")
    return {name.strip(): int(count) for name, _, count in pairs}


def unit_plan(
    layout: Layout,
    scores: Scores,
    threshold: ThresholdLike | UnitCounts,
    round_to: int = 1,
) -> Plan:
    """Keep the units that a threshold (or a count a group) chooses by score.

    Parameters
    ----------
    layout : Layout
    scores : mapping of str to ndarray
        Group name to ``(group.size,)``.
    threshold : float, str, Threshold or mapping of str to int
    round_to : int (default: 1)
        Keep a multiple of this many units a group, more rather than fewer.

    Returns
    -------
    Plan
        With at least the best unit of every group; and a tenth of its units, rounded
        up, unless counts say otherwise.

    Raises
    ------
    AutoFlipError
        If counts are not one for each group, or the threshold cannot be used.

    Warns
    -----
    AutoFlipWarning
        If that is more than the threshold asks for.
    """
    target = _parse_units(threshold)
    if isinstance(target, Mapping):
        sizes = {group.name: group.size for group in layout.groups}
        if set(target) != set(sizes) or min(target.values()) < 0:
            raise AutoFlipError(
                f"units a group must be a number for each of {sizes}, got "
                f"{dict(target)}."
            )
        kept = {n: keep_top(s, max(1, target[n])) for n, s in scores.items()}
    else:
        kept = _choose(layout, scores, target)
    kept = {
        name: choice | keep_top(scores[name], -(-choice.sum() // round_to) * round_to)
        for name, choice in kept.items()
    }
    return Plan(layout, keep_from_bool(kept))


def _choose(layout: Layout, scores: Scores, threshold: Threshold) -> Kept:
    """Choose by a threshold, and say so where floors keep more than it asks for."""
    least, costs = floors(layout), unit_costs(layout)
    if isinstance(threshold, MacRatio) and np.isfinite(threshold.exponent):
        counts = allocate(layout, threshold.ratio, threshold.exponent, least)
        chosen = {name: keep_top(s, counts[name]) for name, s in scores.items()}
    else:
        chosen = select(scores, threshold, costs, least)
    kept = keep_least(chosen, scores, least)
    match threshold:
        case MacRatio(ratio):
            _warn_above(layout, threshold, "MACs", ratio, costs[MacRatio](kept))
        case Compression(factor):
            reached = costs[Compression](kept)
            _warn_above(layout, threshold, "parameters", 1 / factor, reached)
        case _:
            # That the best unit of an emptied group is kept is no surprise.
            lifted = [n for n, c in kept.items() if c.sum() > max(1, chosen[n].sum())]
            if lifted:
                _warn(
                    layout,
                    f"{threshold} keeps less than a tenth of the units of {lifted}; a "
                    "tenth is kept.",
                )
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
        f"The plan keeps those.{without}",
    )


def _warn(layout: Layout, text: str) -> None:
    text += " Ask for more; or, to keep fewer, give units a group as the threshold."
    warnings.warn(text, AutoFlipWarning, stacklevel=5)
    _log_once(layout, text)


@lru_cache(maxsize=16)
def _log_once(layout: Layout, text: str) -> None:
    """Log what every new plan of a run would say again."""
    LOGGER.warning("\t> %s", text)


def keep_least(kept: Kept, scores: Scores, least: Mapping[str, int]) -> Kept:
    """Keep so many best-scored units of a group that has fewer."""
    return {
        name: choice
        if choice.sum() >= least[name]
        else keep_top(scores[name], least[name])
        for name, choice in kept.items()
    }


def weight_tensors(layout: Layout) -> list[TensorSpec]:
    """List what methods for single weights prune: kernels and matrices.

    Biases and normalisation layers, one value a unit, are left alone.
    """
    return [t for t in layout.tensors if t.trainable and len(t.shape) >= 2]
