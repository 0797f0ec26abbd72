"""How importance is spread over a group's units, and where the plan cut."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.plan import Plan

BINS = 20


def unit_histograms(
    plan: Plan, scores: Mapping[str, NDArray[Any]]
) -> dict[str, dict[str, Any]]:
    """Count each group's units by score, kept ones apart from pruned ones.

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
        kept = np.isin(np.arange(group.size), plan.keep[group.name])
        top = float(values.max(initial=0.0))
        found[group.name] = {"top": top}
        for name, chosen in (("kept", kept), ("pruned", ~kept)):
            counts, _ = np.histogram(values[chosen], BINS, (0.0, top or 1.0))
            found[group.name][name] = counts.tolist()
    return found
