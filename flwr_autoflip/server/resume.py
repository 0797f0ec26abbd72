"""Going on after a stop: rounds that are done are not run again.

Flower's ``Strategy.start`` always counts from round 1. :class:`Resumable` lets it, and
answers for the rounds that are done: no messages out, the figures that are known back.
So every round keeps its number, and the result is whole.
"""

from collections.abc import Callable, Iterable
from logging import INFO, getLogger
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from .hosts import find_attribute
from .keeper import BEGUN, Keeper, Metrics, Progress
from .noise import nodes_draw_noise

LOGGER = getLogger("flwr")

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class Resumable(Strategy):
    """A strategy whose finished rounds are saved, and not run again.

    Parameters
    ----------
    strategy : Strategy
    keeper : Keeper
    given : dict of str to object
        Arguments of Flower's ``Strategy.start``; arrays and configs are replaced by
        those to go on from.

    Raises
    ------
    AutoFlipError
        See :meth:`Keeper.open`.
    """

    def __init__(
        self, strategy: Strategy, keeper: Keeper, given: dict[str, Any]
    ) -> None:
        self.strategy = strategy
        self.keeper = keeper
        begun = Progress(
            given["initial_arrays"],
            ConfigRecord(dict(given["train_config"] or {})),
            ConfigRecord(dict(given["evaluate_config"] or {})),
        )
        keeper.noisy |= nodes_draw_noise(given["grid"])
        self.progress = keeper.open(begun, given["num_rounds"])
        self._done = self.progress.last_round
        self._trained = self.progress.trained_round
        self._nodes_evaluate = find_attribute(strategy, "fraction_evaluate", 1.0) != 0
        self._evaluates = given["evaluate_fn"] is not None
        given["initial_arrays"] = self.progress.arrays
        given["train_config"] = self.progress.train_config
        given["evaluate_config"] = self.progress.evaluate_config
        self._log(given["num_rounds"])

    @property
    def last_round(self) -> int:
        """The last round that is done; 0 before the first."""
        return max(0, self._done)

    @property
    def planned(self) -> bool:
        """Whether exploring is over and the rounds can begin or go on."""
        return self.progress.last_round > BEGUN

    def start(
        self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **kwargs: Any
    ) -> Result:
        """Run the rounds that are not done; see Flower's ``Strategy.start``."""
        if not self.planned:
            self._save(0, initial_arrays)
            self._done = 0
        if self._evaluates:
            kwargs["evaluate_fn"] = self._evaluate_once(kwargs["evaluate_fn"])
        return super().start(grid, initial_arrays, *args, **kwargs)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody in a round whose training is done."""
        if server_round <= self._trained:
            return []
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Save what was trained before any node sees it.

        So a round's noise of differential privacy is not drawn twice, and what was
        seen of it is not given again with other noise. Where training is done, only its
        figures are given: its arrays are the initial ones.
        """
        if server_round <= self._trained:
            return None, self.progress.train.get(server_round)
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        _note(self.progress.train, server_round, metrics)
        self.progress.trained_round = server_round
        if arrays is not None:
            self.progress.arrays = arrays
        if self._nodes_evaluate or self.keeper.noisy:
            self.keeper.save(self.progress)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody in a round that is done."""
        if self._is_done(server_round):
            return []
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Give the figures of a round that is done."""
        if self._is_done(server_round):
            return self.progress.evaluate.get(server_round)
        metrics = self.strategy.aggregate_evaluate(server_round, replies)
        _note(self.progress.evaluate, server_round, metrics)
        if not self._evaluates:
            self._save(server_round, self.progress.arrays)
        return metrics

    def summary(self) -> None:
        """Log the strategy's summary."""
        self.strategy.summary()

    def _evaluate_once(self, evaluate_fn: EvaluateFn) -> EvaluateFn:
        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if self._is_done(server_round):
                return self.progress.server.get(server_round)
            metrics = evaluate_fn(server_round, arrays)
            _note(self.progress.server, server_round, metrics)
            if server_round:
                self._save(server_round, arrays)
            return metrics

        return evaluate

    def _is_done(self, server_round: int) -> bool:
        # Round 0 is saved before its evaluation, which is over once a round follows.
        return self._trained > 0 and server_round <= self._done

    def _save(self, last_round: int, arrays: ArrayRecord) -> None:
        self.progress.last_round, self.progress.arrays = last_round, arrays
        self.keeper.save(self.progress)

    def _log(self, num_rounds: int) -> None:
        where = self.keeper.folder.path
        if self._done == num_rounds > 0:
            text = "all %s rounds were done before; their result follows"
            LOGGER.log(INFO, f"%s: {text}", where, num_rounds)
        elif self._done > BEGUN:
            text = "going on after round %s; figures until then are repeated"
            LOGGER.log(INFO, f"%s: {text}", where, self._done)


def _note(figures: Metrics, server_round: int, metrics: MetricRecord | None) -> None:
    if metrics is not None:
        figures[server_round] = metrics
