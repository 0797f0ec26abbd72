"""Strategies around another one, which does all the work."""

import random
from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy


class Around(Strategy):
    """Leave everything to another strategy; inherit, and change what differs.

    Parameters
    ----------
    strategy : Strategy
        Does all the work.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the inner strategy."""
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Leave it to the inner strategy."""
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the inner strategy."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Leave it to the inner strategy."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Leave it to the inner strategy."""
        self.strategy.summary()


class SameNodes(Around):
    """Sample the same nodes for the same seed, whatever else draws random numbers.

    Flower samples with Python's global generator, from which its heartbeats and its
    waiting for slow replies draw as well: how many rounds that takes changes who is
    sampled next.

    Parameters
    ----------
    strategy : Strategy
    seed : int
        As if ``random.seed(seed)`` came before the first round and nobody else drew.
    """

    def __init__(self, strategy: Strategy, seed: int) -> None:
        super().__init__(strategy)
        self._state = random.Random(seed).getstate()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Let the inner strategy sample from this run's own numbers."""
        others = random.getstate()
        random.setstate(self._state)
        try:
            inner = super().configure_train(server_round, arrays, config, grid)
            return list(inner)
        finally:
            self._state = random.getstate()
            random.setstate(others)
