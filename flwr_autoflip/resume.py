"""Going on after a stop: rounds that are done are not run again.

Flower's ``Strategy.start`` always counts from round 1. :class:`Resumable` lets it, and
answers for the rounds that are done: no messages out, the figures that are known back.
So every round keeps its number, and the result is whole.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from logging import INFO, getLogger
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from .checkpoint import CheckpointFolder
from .core.errors import AutoFlipError
from .core.guidance import Report
from .core.layout import Arrays
from .explorer import Explorer
from .hosts import find_attribute
from .ledger import Ledger, Mark
from .planner import Planner
from .snapshot import (
    attributes_of,
    describe_policy,
    differences,
    restore_inplace,
    set_generators,
    settings_of,
    take_generators,
    warn_unsaved,
)

LOGGER = getLogger("flwr")
BEGUN = -1
"""Last round of a run whose plan is not made yet; 0 once it is."""

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
Metrics = dict[int, MetricRecord]


@dataclass
class Progress:
    """How far a run is.

    Parameters
    ----------
    arrays : ArrayRecord
        The global model; what the inner strategy holds may be the same object.
    train_config, evaluate_config : ConfigRecord
        The app's; strategies change them from round to round.
    last_round : int (default: -1)
        The last that is done.
    trained_round : int (default: 0)
        The last whose training is done; perhaps its evaluation is not.
    train, evaluate, server : dict of int to MetricRecord
        Figures of each round, as in Flower's ``Result``.
    """

    arrays: ArrayRecord
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    last_round: int = BEGUN
    trained_round: int = 0
    train: Metrics = field(default_factory=dict)
    evaluate: Metrics = field(default_factory=dict)
    server: Metrics = field(default_factory=dict)


@dataclass
class Keeper:
    """Write all that a run remembers into a folder, and put it back.

    Parameters
    ----------
    folder : CheckpointFolder
    explorer : Explorer
        Knows the inner strategy, which must not have run yet, and the ledger.
    planner : Planner
    """

    folder: CheckpointFolder
    explorer: Explorer
    planner: Planner
    settings: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        explorer = self.explorer
        self.settings = {
            "model": explorer.layout.digest.hex(),
            "policy": describe_policy(self.planner.policy),
            **{name: repr(value) for name, value in explorer.options.items()},
            "value_dtype": explorer.value_dtype,
            **settings_of(self.inner),
        }

    @property
    def inner(self) -> Strategy:
        """The inner strategy."""
        return self.explorer.inner

    @property
    def ledger(self) -> Ledger:
        """The run's ledger."""
        return self.explorer.exchange.ledger

    def save(self, progress: Progress) -> None:
        """Write a checkpoint."""
        keep, initial = self.folder.keep, self.planner.initial
        reports = self.explorer.reports.items()
        state = {
            "settings": dict(self.settings),
            "progress": dict(vars(progress)),
            "inner": attributes_of(self.inner),
            "planner": self.planner.state(),
            "initial": keep(initial) if initial else None,
            "reports": {node: keep(report) for node, report in reports},
            "generators": take_generators(),
            "ledger": asdict(self.ledger.mark()),
        }
        number = progress.last_round - BEGUN + progress.trained_round
        self.folder.save(number, state)

    def open(self, begun: Progress, num_rounds: int) -> Progress:
        """Go on where the folder's run stopped, or begin one.

        Parameters
        ----------
        begun : Progress
            Of a run that begins.
        num_rounds : int

        Returns
        -------
        Progress
            Everything else is put into its place: the inner strategy's attributes,
            reports, plans, generators and the ledger. What nodes hold is forgotten:
            nobody knows what reached them last.

        Raises
        ------
        AutoFlipError
            If it is another run's folder, none of its checkpoints is whole, or it has
            more rounds than are asked for. Nothing is changed then.
        """
        self.settings["train_config"] = repr(dict(begun.train_config))
        self.settings["evaluate_config"] = repr(dict(begun.evaluate_config))
        found = self.folder.load(self._complete)
        self.explorer.exchange.forget()
        warn_unsaved(self.inner)
        if found is None:
            self.ledger.clear()
            self.save(begun)
            return begun
        state, reports, initial = found
        progress = Progress(**state["progress"])
        if progress.trained_round > num_rounds:
            raise AutoFlipError(
                f"{self.folder.path} is in round {progress.trained_round} already, "
                f"num_rounds is {num_rounds}; ask for as many or more, or use another "
                "folder."
            )
        restore_inplace(self.inner, state["inner"])
        self.explorer.reports.clear()
        self.explorer.reports.update(reports)
        self.planner.restore(state["planner"])
        self.planner.initial = initial
        self.ledger.resume(Mark(**state["ledger"]))
        set_generators(state["generators"])
        return progress

    def _complete(
        self, state: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[int, Report], Arrays]:
        """Check that a state is this run's and that what it refers to is whole."""
        others = list(differences(state["settings"], self.settings))
        if others:
            shown = "; ".join(
                f"{name} was {was}, is {now}" for name, was, now in others
            )
            raise AutoFlipError(
                f"{self.folder.path} holds another run: {shown}. Give this run a "
                "checkpoint_dir of its own."
            )
        kept = self.folder.kept
        names = state["reports"].items()
        reports: dict[int, Report] = {node: kept(name) for node, name in names}
        initial = kept(state["initial"]) if state["initial"] else {}
        self.ledger.check(Mark(**state["ledger"]))
        return state, reports, initial


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

        A model with the noise of differential privacy is then never made twice, of
        other replies with the same noise. Where training is done, only its figures are
        given: its arrays are the initial ones.
        """
        if server_round <= self._trained:
            return None, self.progress.train.get(server_round)
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        _note(self.progress.train, server_round, metrics)
        self.progress.trained_round = server_round
        if arrays is not None:
            self.progress.arrays = arrays
        if self._nodes_evaluate:
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
