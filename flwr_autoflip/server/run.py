"""A run: its state, and the steps of Flower's loop that take it further."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from ..methods.base import Order
from .hosts import find_attribute
from .persistence.checkpoint import Checkpoints
from .persistence.inner import settings_of
from .round.aggregate import Aggregated
from .round.steps import EvaluateFn, Steps
from .state import RunState


@dataclass
class Run:
    """Everything of one ``start``; rounds that are done are not run again.

    Flower's loop always counts from round 1. For a round that is done it gets no
    messages, and the figures that are known.
    """

    state: RunState
    steps: Steps
    checkpoints: Checkpoints | None
    evaluate_fn: EvaluateFn | None
    order: Order | None = None

    @classmethod
    def begin(
        cls,
        begun: RunState,
        steps: Steps,
        folder: Path | None,
        noisy: bool,
        num_rounds: int,
        evaluate_fn: EvaluateFn | None,
    ) -> "Run":
        """Begin a run, or go on with the one that the folder holds."""
        found = checkpoints = None
        if folder is not None:
            settings = {
                "method": repr(steps.method),
                "value_dtype": steps.dtype,
                "budgets": repr(steps.asks_budgets),
                "train_config": repr(dict(begun.train_config)),
                "evaluate_config": repr(dict(begun.evaluate_config)),
                **settings_of(steps.inner, noisy),
            }
            layout = begun.method.plan.layout
            checkpoints = Checkpoints(folder, settings, layout, noisy)
            found = checkpoints.open(begun, steps.inner, steps.ledger, num_rounds)
        if found is None:
            steps.ledger.clear()
        state = found or begun
        if state.done < num_rounds:  # else nothing is run
            steps.ledger.add_run(state.done)
        steps.progress.begin(num_rounds)
        run = cls(state, steps, checkpoints, evaluate_fn)
        if found is None:
            run.save()
        return run

    def save(self) -> None:
        """Write a checkpoint, if there is a folder for it."""
        if self.checkpoints is not None:
            self.checkpoints.save(self.state, self.steps.inner, self.steps.ledger)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Carry out the method's order for a round; see :meth:`.Steps.configure_train`.

        What only measures is saved before anybody trains.
        """
        if server_round <= self.state.trained:
            return []
        known = self.state.method
        self.state, self.order, messages = self.steps.configure_train(
            self.state, server_round, arrays, config, grid
        )
        if self.state.method is not known:
            self.save()
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> Aggregated:
        """Average and learn; see :meth:`.Steps.aggregate_train`.

        Where nodes see what was trained it is saved before: a round's noise of
        differential privacy is never drawn twice.
        """
        if server_round <= self.state.trained:
            return None, self.state.train.get(server_round)
        self.state, aggregated = self.steps.aggregate_train(
            self.state, self.order, server_round, replies
        )
        nodes_evaluate = find_attribute(self.steps.inner, "fraction_evaluate", 1.0)
        if nodes_evaluate or (self.checkpoints and self.checkpoints.noisy):
            self.save()
        return aggregated

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send nodes the deployable model; see :meth:`.Steps.configure_evaluate`."""
        if server_round <= self.state.done:
            return []
        self.state, messages = self.steps.configure_evaluate(
            self.state, server_round, arrays, config, grid
        )
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the nodes' metrics; see :meth:`.Steps.aggregate_evaluate`."""
        if server_round <= self.state.done:
            return self.state.evaluate.get(server_round)
        self.state, metrics = self.steps.aggregate_evaluate(
            self.state, server_round, replies
        )
        if self.evaluate_fn is None:
            self._end_round(server_round, metrics)
        return metrics

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Let the app evaluate the deployable model; see :meth:`.Steps.evaluate`."""
        begun = self.state.trained > 0 or self.state.sampled  # so round 0 is over
        if (begun and server_round <= self.state.done) or self.evaluate_fn is None:
            return self.state.server.get(server_round)
        metrics = self.steps.evaluate(
            self.state, server_round, arrays, self.evaluate_fn
        )
        if metrics is not None:
            server = {**self.state.server, server_round: metrics}
            self.state = replace(self.state, server=server)
        self._end_round(server_round, metrics)
        return metrics

    def _end_round(self, server_round: int, metrics: MetricRecord | None) -> None:
        if server_round:  # round 0 is over once a round follows
            self.state = replace(self.state, done=server_round)
            plan = self.state.method.plan if self.order is None else self.order.plan
            self.steps.progress.end_round(server_round, plan, metrics)
            self.save()
