"""What is pruned: one small file a method, all of the same shape.

Every method shares one strategy, wire, client and ledger, so that comparisons are fair
by construction. None of it needs Flower.
"""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, get_args

from ..errors import AutoFlipError
from .authors_code import AuthorsCode
from .autoflip import Guided
from .base import Method, Order, Result, Round, State
from .baselines.eflprune import Criterion, EFLPrune
from .baselines.prunefl import PruneFL
from .baselines.structured import Structured
from .dense import Dense
from .l1 import L1
from .paper import Paper
from .random import Random

__all__ = [
    "L1",
    "NAMES",
    "AuthorsCode",
    "Dense",
    "EFLPrune",
    "Guided",
    "Method",
    "Order",
    "Paper",
    "PruneFL",
    "Random",
    "Result",
    "Round",
    "State",
    "Structured",
    "named",
]

_NAMED: Mapping[str, Callable[..., Method[Any]]] = {
    "l1": L1,
    "autoflip": Guided,
    "paper": Paper,
    "authors-code": AuthorsCode,
    "random": Random,
    "dense": Dense,
    "prunefl": PruneFL,
    "structured": partial(Structured, restart=False),
    "structured-restart": Structured,
    **{f"eflprune-{c}": partial(EFLPrune, c) for c in get_args(Criterion)},
}
NAMES = tuple(_NAMED)
"""Names of methods; those after "dense" are other papers'."""


def named(name: str | Method[Any], macs: float | None = None) -> Method[Any]:
    """Make a method by its name.

    Parameters
    ----------
    name : str or Method
        One of :data:`NAMES`; a method is given back as it is.
    macs : float, optional
        Ratio, in (0, 1], of the MACs that can shrink, that is kept; left out, the
        method's own. For names only.

    Returns
    -------
    Method

    Raises
    ------
    AutoFlipError
        On an unknown name, or ``macs`` for a method that goes by something else.

    Examples
    --------
    >>> named("l1", macs=0.5).macs
    0.5
    """
    if isinstance(name, Method):
        if macs is not None:
            raise AutoFlipError(
                f"macs={macs!r} does nothing here: {type(name).__name__} is an object "
                "with options of its own; set it there."
            )
        return name
    if not isinstance(name, str) or name not in _NAMED:
        near = get_close_matches(str(name), _NAMED, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise AutoFlipError(
            f"method must be one of {', '.join(map(repr, _NAMED))} or a Method object, "
            f"got {name!r}. {hint}".rstrip()
        )
    make = _NAMED[name]
    if macs is None:
        return make()
    if not hasattr(make(), "macs"):
        raise AutoFlipError(
            f"macs={macs!r} does nothing here: {name!r} does not choose by MACs. Leave "
            "it out, or give a Method object with options of its own."
        )
    return make(macs=macs)
