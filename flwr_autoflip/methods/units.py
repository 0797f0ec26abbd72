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
from . import threshold as thresholds
from .base import Method, S, Scores
from .threshold import Compression, Kept, MacRatio, Threshold, ThresholdLike, keep_top

LOGGER = getLogger("flwr")

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
        Another way to say how many: a short form, or units a group, such as
        ``"conv1=8,fc1=32"``; see :func:`.parse_threshold`.
    round_to : int (default: 1)
        Keep a multiple of this many units a group, such as 8 for some hardware.

    Raises
    ------
    AutoFlipError
        If both are given, or a value is none of these.
    """

    macs: float | None = None
    threshold: ThresholdLike | None = None
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.macs is None and self.threshold is None:
            object.__setattr__(self, "macs", MACS)
        thresholds.parse_target(self.macs, self.threshold)
        if not (isinstance(self.round_to, int) and self.round_to >= 1):
            raise AutoFlipError(f"round_to must be at least 1, got {self.round_to!r}.")

    @property
    def target(self) -> Threshold:
        """How many units are kept."""
        return thresholds.parse_target(self.macs, self.threshold) or MacRatio(MACS)

    def choose(self, layout: Layout, scores: Scores) -> Plan:
        """Make the plan of the best-scored units; see :func:`unit_plan`."""
        return unit_plan(layout, scores, self.target, self.round_to)


def unit_plan(
    layout: Layout, scores: Scores, threshold: ThresholdLike, round_to: int = 1
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
    target = thresholds.parse_threshold(threshold)
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


def _choose(layout: Layout, scores: Scores, rule: thresholds.Rule) -> Kept:
    """Choose by a rule, and say so where floors keep more than it asks for."""
    least, costs = thresholds.floors(layout), thresholds.UnitCosts(layout)
    match rule:
        case MacRatio(wanted):
            cost, what = costs.mac_ratio, "MACs"
        case Compression(factor):
            cost, what, wanted = costs.parameter_ratio, "parameters", 1 / factor
        case _:
            chosen = thresholds.select(scores, rule)
            kept = {n: c | keep_top(scores[n], least[n]) for n, c in chosen.items()}
            # That the best unit of an emptied group is kept is no surprise.
            lifted = [n for n, c in kept.items() if c.sum() > max(1, chosen[n].sum())]
            if lifted:
                text = f"{rule} keeps less than a tenth of the units of {lifted}; a "
                _warn(layout, f"{text}tenth is kept.")
            return kept
    if isinstance(rule, MacRatio) and np.isfinite(rule.exponent):
        counts = thresholds.allocate(layout, rule.ratio, rule.exponent, least)
        kept = {name: keep_top(s, counts[name]) for name, s in scores.items()}
    else:
        kept = thresholds.select(scores, rule, cost, least)
    if (reached := cost(kept)) > wanted * (1 + 1e-9):
        text = (
            f"{rule} is out of reach: it asks for {wanted:.3g} of the {what} that can "
            f"shrink, and the fewest units, a tenth of every group, have {reached:.3g}."
            " The plan keeps those."
        )
        if fixed := layout.fixed_layers:
            text += f" Layers without prunable units, {fixed}, are not counted."
        _warn(layout, text)
    return kept


def _warn(layout: Layout, text: str) -> None:
    text += " Ask for more; or, to keep fewer, give units a group as the threshold."
    warnings.warn(text, AutoFlipWarning, stacklevel=4)
    log_once(layout, text)


@lru_cache(maxsize=64)
def log_once(layout: Layout, text: str) -> None:
    """Warn in the log of what every plan of a run would say again."""
    LOGGER.warning("\t> %s", text)


def weight_tensors(layout: Layout) -> list[TensorSpec]:
    """List what methods for single weights prune: kernels and matrices.

    Biases and normalisation layers, one value a unit, are left alone.
    """
    return [t for t in layout.tensors if t.trainable and len(t.shape) >= 2]
