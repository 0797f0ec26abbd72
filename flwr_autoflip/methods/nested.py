"""Plans inside a plan, for nodes that can carry less of it.

Units of every group are ranked once. Sub-plans keep the same share of each group's
ranking, so that of any two the larger one holds the smaller one's units, whatever they
had to fit.
"""

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from ..errors import KeepError
from ..graph.plan import Plan
from .allocate import floors
from .threshold import Kept, keep_even


def cut_plan(
    plan: Plan,
    scores: Mapping[str, NDArray[Any]],
    share: float,
    cost: Callable[[Plan], float],
    multiple: int = 1,
) -> Plan:
    """Keep of a plan as many units as fit, those with the best scores first.

    Parameters
    ----------
    plan : Plan
        The largest that may come out; single weights that went stay away.
    scores : mapping of str to ndarray
        Group name to ``(group.size,)``; larger means needed more.
    share : float
        Largest share of the dense model's cost, in (0, 1].
    cost : callable
        Plan to its share of the dense model's cost; grows with every unit.
    multiple : int (default: 1)
        Keep a multiple of this many units a group, fewer rather than more.

    Returns
    -------
    Plan
        ``plan`` itself if it fits. A group falls below its floor, see
        :func:`.allocate.floors`, only if the plan has it there or nothing else fits.

    Raises
    ------
    KeepError
        If even the fewest units cost more.
    """
    if cost(plan) <= share:
        return plan

    cut = _even_part(plan, scores, share, cost, multiple, floors(plan.layout))
    if cost(cut) > share:  # a part of the fewest, so that cuts stay nested
        cut = _even_part(cut, scores, share, cost, multiple, None)
    if (least := cost(cut)) > share:
        raise KeepError(
            f"the fewest units of every group cost {least:.3g} of the dense model, "
            f"which is above {share:g}."
        )
    return cut


def below_floor(plan: Plan) -> list[str]:
    """Name the groups of which a plan keeps fewer units than their floor."""
    least = floors(plan.layout)
    return [name for name, kept in plan.keep.items() if len(kept) < least[name]]


def _even_part(
    plan: Plan,
    scores: Mapping[str, NDArray[Any]],
    share: float,
    cost: Callable[[Plan], float],
    multiple: int,
    least: Mapping[str, int] | None,
) -> Plan:
    def part(kept: Kept) -> Plan:
        keep = {name: plan.keep[name][choice] for name, choice in kept.items()}
        return Plan(plan.layout, keep, plan.mask)

    ranked = {name: scores[name][kept] for name, kept in plan.keep.items()}
    return part(
        keep_even(ranked, lambda kept: cost(part(kept)), share, multiple, least)
    )
