"""A strategy's own ``start()``: it runs as it is, and its rounds are AutoFlip's.

People put into ``start()`` what a run does besides its rounds: the best model is saved,
a table is written. It runs on a *view* of the strategy: an object of a subclass that
shares all attributes with it and whose steps, ``configure_train`` and so on, are ours.
So ``super().start(...)`` in it, or a copy of Flower's loop, calls AutoFlip.
"""

import inspect
from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from ..errors import AutoFlipError
from .hosts import layers

STEPS = (
    *("configure_train", "aggregate_train", "configure_evaluate"),
    *("aggregate_evaluate", "summary"),
)


def find_own_start(strategy: Strategy) -> Strategy | None:
    """Find the outermost of strategies around strategies that overrides ``start``."""
    for layer in layers(strategy):
        if getattr(type(layer), "start", Strategy.start) is not Strategy.start:
            return layer  # type: ignore[no-any-return]
    return None


def check_can_resume(strategy: Strategy) -> None:
    """Raise ``AutoFlipError`` if a stop would make a strategy's ``start`` go wrong."""
    if own := find_own_start(strategy):
        raise AutoFlipError(
            f"{type(own).__name__} overrides start(), which after a stop would see the "
            "rounds that are done again, with the last one's model: leave "
            "checkpoint_dir out, or move what it does into evaluate_fn."
        )


def bind_start(
    strategy: Strategy, grid: Grid, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bind what ``start`` was given.

    Parameters
    ----------
    strategy : Strategy
        The inner one; if it overrides ``start``, that one's defaults hold.
    grid : Grid
    args : tuple
        ``initial_arrays`` first.
    kwargs : dict of str to object

    Returns
    -------
    given : dict of str to object
        Arguments of Flower's ``Strategy.start``, complete, without ``self``.
    more : dict of str to object
        What only the override knows.

    Raises
    ------
    TypeError
        As Python does, if ``start`` does not take them.
    """
    standard = inspect.signature(Strategy.start)
    own = find_own_start(strategy)
    known = {k: v for k, v in kwargs.items() if own is None or k in standard.parameters}
    given = standard.bind(strategy, grid, *args, **known).arguments
    more = {k: v for k, v in kwargs.items() if k not in known}
    defaults = {name: p.default for name, p in standard.parameters.items()}
    if own is not None:
        start = inspect.signature(type(own).start)
        start.bind(own, grid, *args, **kwargs)
        defaults |= {
            name: p.default
            for name, p in start.parameters.items()
            if name in defaults and p.default is not p.empty
        }
    given = {**defaults, **given}
    del given["self"]
    return given, more


def run_own_start(
    own: Strategy, steps: Strategy, given: dict[str, Any], more: dict[str, Any]
) -> Result:
    """Run a strategy's own ``start`` around the steps of another.

    Parameters
    ----------
    own : Strategy
        From :func:`find_own_start`; its attributes change as its ``start`` says.
    steps : Strategy
        Runs the rounds.
    given, more : dict of str to object
        From :func:`bind_start`.

    Returns
    -------
    Result
        Whatever it returns.

    Raises
    ------
    AutoFlipError
        If its rounds went past ``steps``.
    """
    asked: list[int] = []

    def configure_train(
        server_round: int, *args: Any, **kwargs: Any
    ) -> Iterable[Message]:
        asked.append(server_round)
        return steps.configure_train(server_round, *args, **kwargs)

    kind = type(own)
    ours = {name: staticmethod(getattr(steps, name)) for name in STEPS}
    ours["configure_train"] = staticmethod(configure_train)
    view: Any = object.__new__(type(f"AutoFlip{kind.__name__}", (kind,), ours))
    view.__dict__ = own.__dict__
    takes = inspect.signature(kind.start).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    rest = {**given, **more}
    grid, arrays = rest.pop("grid"), rest.pop("initial_arrays")
    taken = {name: v for name, v in rest.items() if takes_all or name in takes}
    result: Result = view.start(grid, arrays, **taken)
    if given["num_rounds"] and not asked:
        raise AutoFlipError(
            f"{kind.__name__}.start never asked AutoFlip for a round's messages: its "
            "rounds have to call self.configure_train, or super().start(...)."
        )
    return result
