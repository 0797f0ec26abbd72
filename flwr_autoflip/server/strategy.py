"""AutoFlip: a Flower strategy around any other one. Order, ship, aggregate, learn."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from logging import INFO, getLogger
from pathlib import Path
from typing import Any, get_args

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from .. import wire
from ..errors import AutoFlipError
from ..graph.layout import Layout, check_arrays
from ..graph.plan import Plan
from ..graph.shrink import shrink_with
from ..graph.tracing.trace import trace
from ..graph.tracing.verify import answering_groups
from ..ledger.cost import CostOf
from ..ledger.ledger import Ledger
from ..methods import Method, named
from ..methods.base import Order, ValueDtype
from .checkpoint import Checkpoints
from .hosts import check_inner, wait_for_nodes
from .state import RunState
from .steps import Steps

LOGGER = getLogger("flwr")
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class AutoFlip(Strategy):
    """Federated pruning by loss-landscape exploration, around another strategy.

    Parameters
    ----------
    strategy : Strategy
        Samples nodes and aggregates: FedAvg, FedAdam, Flower's DP wrappers, any.
    model : nn.Module
        The dense model.
    example_input : Tensor, tuple or mapping of str to object
        What its ``forward`` takes, a batch of one: one argument, positional ones (a
        dict among them is one of them), or arguments by keyword.
    method : str or Method (default: "l1")
        Which units are pruned and what trains; see :mod:`flwr_autoflip.methods`.
    macs : float, optional
        Ratio of the MACs that the deployed model keeps, of those that can shrink; for
        a method that is given by its name. None is the method's own.
    ignored_layers : sequence of str (default: ())
        Modules whose units all stay; ratios are of the rest.
    value_dtype : {"int8", "float16", "float32"} (default: "int8")
        Weights on the wire, both ways; 8 and 16 bits with error feedback. Buffers
        travel in float32.
    budgets : bool (default: False)
        Ask each node what it can carry, and send it that part of the plan.
    ledger_dir : path, optional
        Folder for ``ledger.jsonl``.
    checkpoint_dir : path, optional
        Folder from which the same command goes on after a stop. The ledger lies in
        it, too, unless it has a folder of its own.

    Attributes
    ----------
    layout : Layout
    ledger : Ledger
        What every round really cost; also without ``ledger_dir``.
    method : Method

    Raises
    ------
    AutoFlipError
        On a wrong option or a model that cannot be pruned, before any node is asked.

    Notes
    -----
    With Flower's central DP inside, ``AutoFlip(DP...(FedAvg()))``, what is aggregated
    is clipped and noised. Nodes may noise what they report when they explore; see
    :mod:`flwr_autoflip.wire.privacy`.
    """

    def __init__(
        self,
        strategy: Strategy,
        model: nn.Module,
        example_input: Any,
        *,
        method: str | Method[Any] = "l1",
        macs: float | None = None,
        ignored_layers: Iterable[str] = (),
        value_dtype: ValueDtype = "int8",
        budgets: bool = False,
        ledger_dir: str | Path | None = None,
        checkpoint_dir: str | Path | None = None,
    ) -> None:
        self.strategy = strategy
        self.method = named(method, macs)
        if value_dtype not in get_args(ValueDtype):
            raise AutoFlipError(
                f"value_dtype must be one of {get_args(ValueDtype)}, got "
                f"{value_dtype!r}."
            )
        check_inner(strategy, budgets, resumes=checkpoint_dir is not None)
        self.value_dtype, self.budgets = value_dtype, budgets
        self.layout: Layout = trace(model, example_input, tuple(ignored_layers))
        answer = answering_groups(model, example_input, self.layout)
        self.cost_of = CostOf(model, example_input, self.layout.batch_axis, answer)
        self.checkpoint_dir = None if checkpoint_dir is None else Path(checkpoint_dir)
        folder = self.checkpoint_dir if ledger_dir is None else Path(ledger_dir)
        self.ledger = Ledger(None if folder is None else folder / "ledger.jsonl")

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int | None = None,
        timeout: float | None = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        **own: Any,
    ) -> Result:
        """Run the rounds, or go on with them; see Flower's ``Strategy.start``.

        Parameters
        ----------
        grid : Grid
        initial_arrays : ArrayRecord
            The dense model's ``state_dict``.
        num_rounds : int (default: 3, or what an inner ``start`` of its own says)
        timeout : float or None (default: 3600)
            Seconds to wait for replies; None waits for ever.
        train_config, evaluate_config : ConfigRecord, optional
            Sent to nodes.
        evaluate_fn : callable, optional
            Called before the rounds and once a round, with the deployable model's
            arrays: dense, zeros where it has nothing.
        **own
            What an inner strategy's own ``start`` takes besides; that one runs then.

        Returns
        -------
        Result
            ``arrays`` are the dense global model; :meth:`deployable_model` cuts it.

        Raises
        ------
        AutoFlipError
            If ``initial_arrays`` are not the model's, no node's training counted,
            another run holds the folder, or it holds another run or nothing whole.
        """
        weights = wire.from_arrayrecord(initial_arrays)
        check_arrays(self.layout, weights, whose="initial arrays")
        method, weights = self.method.begin(self.layout, weights)
        fresh = RunState(
            method,
            wire.to_arrayrecord(weights),  # the caller's stay as they are
            ConfigRecord(dict(train_config or {})),
            ConfigRecord(dict(evaluate_config or {})),
        )
        if num_rounds is None:
            num_rounds = rounds_of(self.strategy)
        noisy = draws_noise(self.strategy) or nodes_draw_noise(grid)
        with claimed(self._folders), self._beginning.restored(noisy):
            state = self._open(fresh, noisy, num_rounds)
            self._steps = self._build(timeout, num_rounds, evaluate_fn is not None)
            wait_for_nodes(grid, self.strategy, timeout)
            result = run_start(
                self.strategy,
                self,
                own,
                grid,
                state.arrays,
                num_rounds=num_rounds,
                timeout=timeout,
                train_config=state.train_config,
                evaluate_config=state.evaluate_config,
                evaluate_fn=evaluate_fn and self._evaluate(evaluate_fn),
            )
            self._steps.attempts.check()
        if isinstance(result, Result) and not len(result.arrays):
            result.arrays = self.state.arrays
        return result

    # --- One run ----------------------------------------------------------------------

    def _open(self, fresh: RunState, noisy: bool, num_rounds: int) -> RunState:
        """Begin a run, or go on with the folder's."""
        found = None
        if self.checkpoint_dir is not None:
            settings = {
                "method": repr(self.method),
                "value_dtype": self.value_dtype,
                "budgets": repr(self.asks_budgets),
                "train_config": repr(dict(fresh.train_config)),
                "evaluate_config": repr(dict(fresh.evaluate_config)),
                **settings_of(self.strategy, noisy),
            }
            self._checkpoints = Checkpoints(
                self.checkpoint_dir, settings, self.layout, noisy
            )
            found = self._checkpoints.open(
                fresh, self.strategy, self.ledger, num_rounds
            )
        self._state = found or fresh
        if found is None:
            self.ledger.clear()
            self._save()
        if self._state.done < num_rounds:  # else nothing is run
            self.ledger.add_run(self._state.done)
        return self._state

    def _build(self, timeout: float | None, num_rounds: int, evaluates: bool) -> Steps:
        key = weight_key(self.strategy)
        exchange = Exchange(self.ledger, self.cost_of, key, timeout)
        progress = Progress(self.ledger, self.cost_of)
        progress.begin(num_rounds)
        self._order, self._evaluates = None, evaluates
        return Steps(
            self.strategy,
            self.method,
            self.value_dtype,
            exchange,
            Budgets(exchange, self.layout, self.asks_budgets),
            Attempts(self.ledger),
            progress,
            self._checkpoints and self._checkpoints.reports,
        )

    def _save(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.save(self._state, self.strategy, self.ledger)

    # --- Steps of Flower's loop -------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the nodes of a round what the method asks; nobody if it is done."""
        check_started(self._state)
        before = self._state
        if server_round <= before.trained:
            return []
        self._state, self._order, messages = self._steps.configure_train(
            before, server_round, arrays, config, grid
        )
        if self._state.method is not before.method:  # exploring is not done twice
            self._save()
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> Aggregated:
        """Average what came back, and let the method learn from it.

        It is saved before any node sees it, so that noise of differential privacy is
        never drawn twice for one round.
        """
        if server_round <= self._state.trained:
            return None, self._state.train.get(server_round)
        self._state, aggregated = self._steps.aggregate_train(
            self._state, self._order, server_round, replies
        )
        self._save()
        return aggregated

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the sampled nodes the deployable model; nobody if the round is done."""
        if server_round <= self._state.done:
            return []
        self._state, messages = self._steps.configure_evaluate(
            self._state, server_round, arrays, config, grid
        )
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the nodes' metrics."""
        if server_round <= self._state.done:
            return self._state.evaluate.get(server_round)
        self._state, metrics = self._steps.aggregate_evaluate(
            self._state, server_round, replies
        )
        if not self._evaluates:
            self._end_round(server_round, metrics)
        return metrics

    def _evaluate(self, evaluate_fn: EvaluateFn) -> EvaluateFn:
        """Let the app evaluate the deployable model, once a round."""

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            state = self._state
            if state.trained and server_round <= state.done:
                return state.server.get(server_round)
            metrics = self._steps.evaluate(state, server_round, arrays, evaluate_fn)
            if metrics is not None:
                server = {**state.server, server_round: metrics}
                self._state = replace(state, server=server)
            self._end_round(server_round, metrics)
            return metrics

        return evaluate

    def _end_round(self, server_round: int, metrics: MetricRecord | None) -> None:
        if server_round:
            self._state = replace(self._state, done=server_round)
            self._steps.progress.end_round(server_round, metrics)
            self._save()

    def summary(self) -> None:
        """Log the settings, then the inner strategy's."""
        LOGGER.log(INFO, "\t├──> AutoFlip settings:")
        LOGGER.log(INFO, "\t│\t├── Method: %s", self.method)
        LOGGER.log(INFO, "\t│\t└── Values: %s", self.value_dtype)
        self.strategy.summary()

    # --- What comes out ---------------------------------------------------------------

    @property
    def state(self) -> RunState:
        """All that the run knows now."""
        check_started(self._state)
        return self._state

    @property
    def deployable_plan(self) -> Plan:
        """The plan of what a device would run now."""
        return self.state.method.plan

    def deployable_model(self, arrays: ArrayRecord) -> nn.Module:
        """Build the small model for deployment.

        Parameters
        ----------
        arrays : ArrayRecord
            Dense, such as ``result.arrays``.

        Returns
        -------
        nn.Module
            In evaluation mode.
        """
        values = wire.from_arrayrecord(arrays)
        return shrink_with(self.cost_of.model, self.deployable_plan, values).eval()
