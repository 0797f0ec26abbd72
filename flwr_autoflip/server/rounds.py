"""Rounds that come to nothing: each is lost by itself, and a run of nothing else fails.

Nodes choose what they send, and a strategy that somebody else wrote aggregates it. What
it raises costs the round, with one line in the log. A run in which no node's training
counted must not look like one that saved 91 % of its bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from logging import ERROR, getLogger
from typing import Any, TypeVar

from flwr.app import Message
from flwr.serverapp.strategy import Strategy

from ..errors import AutoFlipError, visible
from ..ledger.ledger import Ledger

LOGGER = getLogger("flwr")
T = TypeVar("T")
_SHOWN = 3


@dataclass
class Rounds:
    """Follow which rounds trained the model, and why others did not.

    Parameters
    ----------
    ledger : Ledger
    """

    ledger: Ledger
    _trained: bool = False
    _faults: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Begin a run, or go on with the one whose rows the ledger holds."""
        self._trained, self._faults = "ok" in self._statuses(), []

    def attempt(self, what: str, instead: T, work: Callable[..., T], *args: Any) -> T:
        """Let the inner strategy do its part of a round.

        Parameters
        ----------
        what : str
            Its method, for the log.
        instead : object
            Of a round that is lost.
        work : callable
        *args
            For ``work``.

        Returns
        -------
        object
            What ``work`` gives; ``instead`` if it raises.
        """
        try:
            return work(*args)
        except Exception as error:
            fault = visible(f"{what} raised {type(error).__name__}: {error}")
            LOGGER.log(ERROR, "\t> this round is lost, the model stays: %s", fault)
            if what.endswith("_train") and fault not in self._faults:
                self._faults.append(fault)
            return instead

    def choose(self, inner: Strategy, phase: str, *args: Any) -> list[Message]:
        """Let the inner strategy choose a phase's nodes; none if it raises."""
        what, none = f"configure_{phase}", list[Message]()
        configure = getattr(inner, what)
        return self.attempt(what, none, lambda: list(configure(*args)))

    def note_trained(self) -> None:
        """Remember that a round changed the model."""
        self._trained = True

    def check(self) -> None:
        """Raise ``AutoFlipError`` if nodes were to train, and nothing came of it."""
        statuses = self._statuses()
        counted = self._trained or ("ok" in statuses and not self._faults)
        if counted or not (statuses or self._faults):
            return
        reasons = [*self._faults, *self.ledger.reasons("train")]
        more = len(reasons) - _SHOWN
        raise AutoFlipError(
            "no node's training counted in any round, the model is the one that the "
            f"run began with: {'; '.join(reasons[:_SHOWN])}"
            f"{f'; and {more} other reasons' if more > 0 else ''}"
        )

    def _statuses(self) -> set[str]:
        return {row["status"] for row in self.ledger.rows if row["phase"] == "train"}
