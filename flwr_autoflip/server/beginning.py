"""Runs that begin with the strategy as it was: one object, started twice."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flwr.serverapp.strategy import Strategy

from ..errors import AutoFlipWarning
from .noise import draws_noise
from .snapshot import KINDS, PLAIN_KINDS, Attributes, has_state, state_of, unsaved
from .tree import Kind, TreeReader, TreeWriter


class Beginning:
    """What a strategy was before its first run: each later one begins there, too.

    What the app assigns between runs stays, and later runs begin with it. So does what
    a privacy accountant has counted: another run spends on top of it.

    Parameters
    ----------
    strategy : Strategy
        With the strategies that it wraps.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self._kinds = KINDS
        self._before: Attributes = {}
        self._after: Attributes = {}
        self._inside: list[Beginning] = []

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put the strategy back to its beginning, and let a run change it.

        Warns
        -----
        AutoFlipWarning
            From the second run on, of attributes that no copy can be made of.
        """
        kinds = PLAIN_KINDS if draws_noise(self.strategy) else KINDS
        if self._after and (names := unsaved(self.strategy, kinds)):
            warnings.warn(
                f"this run begins with {', '.join(names)} of the inner strategy as the "
                "last one left them: no copy can be made of them. Build a new AutoFlip "
                "if that matters.",
                AutoFlipWarning,
                stacklevel=4,
            )
        self._put_back(kinds)
        try:
            yield
        finally:
            self._note_end()

    def _put_back(self, kinds: Sequence[Kind]) -> None:
        now, before = vars(self.strategy), self._before
        for name, value in list(now.items()):
            if value is not self._after.get(name, self):  # the app's, not the run's
                before[name] = _copied(state_of(value), kinds)
            elif name not in before:
                delattr(self.strategy, name)
            elif not has_state(value):
                setattr(self.strategy, name, _copied(before[name], kinds))
            elif not hasattr(value, "get_privacy_spent"):
                value.load_state_dict(_copied(before[name], kinds))
        inside = [value for value in now.values() if isinstance(value, Strategy)]
        known = {id(each.strategy): each for each in self._inside}
        self._inside = [known.get(id(each)) or Beginning(each) for each in inside]
        for each in self._inside:
            each._put_back(kinds)

    def _note_end(self) -> None:
        self._after = dict(vars(self.strategy))
        for each in self._inside:
            each._note_end()


def _copied(value: Any, kinds: Sequence[Kind]) -> Any:
    """Copy a value; what a tree cannot hold stays the object that it is."""
    writer = TreeWriter(kinds)
    try:
        written = writer.write(value)
    except TypeError:
        return value
    arrays = {name: array.copy() for name, array in writer.arrays.items()}
    return TreeReader(arrays, kinds).read(written)
