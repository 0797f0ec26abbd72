"""How guidance is spread over a group's units, and where the plan cut."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.plan import Plan

BINS = 20


def unit_histograms(
    plan: Plan, scores: Mapping[str, NDArray[Any]]
) -> dict[str, dict[str, Any]]:
    """Count each group's units by score, those that stay apart from those that go.

    Parameters
    ----------
    plan : Plan
    scores : mapping of str to ndarray
        Group name to ``(group.size,)``, not negative.

    Returns
    -------
    dict of str to dict
        Group name to ``"top"``, the highest score, and ``"kept"`` and ``"pruned"``,
        each :data:`BINS` counts in equal steps from 0 to it.
    """
    found = {}
    for group in plan.layout.groups:
        values = np.asarray(scores[group.name], np.float64)
        kept = np.zeros(group.size, np.bool_)
        kept[plan.keep[group.name]] = True
        top = float(values.max(initial=0.0))
        found[group.name] = {
            "top": top,
            "kept": _count(values[kept], top),
            "pruned": _count(values[~kept], top),
        }
    return found


def _count(values: NDArray[np.float64], top: float) -> list[int]:
    counts, _ = np.histogram(values, BINS, (0.0, top or 1.0))
    return [int(count) for count in counts]
