"""AutoFlip: a Flower strategy around any other one. Order, ship, aggregate, learn."""

from collections.abc import Iterable
from logging import INFO, getLogger
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from .. import wire
from ..graph.layout import Layout
from ..graph.plan import Plan
from ..graph.shrink import shrink_with
from ..graph.tracing.trace import trace
from ..graph.tracing.verify import answering_groups
from ..ledger.cost import CostOf
from ..ledger.ledger import Ledger
from ..methods import Method, named
from ..methods.base import ValueDtype
from ..wire.encoding import Encoding
from . import hosts
from .persistence.checkpoint import REPORTS, claimed
from .persistence.inner import Beginning, draws_noise, nodes_draw_noise
from .round.aggregate import Aggregated
from .round.exchange import Exchange
from .round.steps import EvaluateFn, Steps
from .run import Run
from .state import RunState

LOGGER = getLogger("flwr")


class AutoFlip(Strategy):
    """Federated pruning by loss-landscape exploration, around another strategy.

    Parameters
    ----------
    strategy : Strategy
        Samples nodes and aggregates: FedAvg, FedAdam, Flower's DP wrappers, any.
    model : nn.Module
        The dense model.
    example_input : Tensor, tuple or mapping of str to object
        What its ``forward`` takes, a batch of one; a mapping is by keyword.
    method : str or Method (default: "l1")
        Which units are pruned and what trains; see :mod:`flwr_autoflip.methods`.
    macs : float, optional
        Ratio of the MACs that the deployed model keeps, of those that can shrink; for
        a method that is given by its name. None is the method's own.
    ignored_layers : sequence of str (default: ())
        Modules whose units are all kept; ratios are of the rest.
    value_dtype : {"int8", "float16", "float32"} (default: "int8")
        Weights on the wire, both ways; buffers travel in float32.
    budgets : bool (default: False)
        Ask each node what it can carry, and send it that part of the plan.
    ledger_dir : path, optional
        Folder for ``ledger.jsonl``.
    checkpoint_dir : path, optional
        Folder from which the same command goes on after a stop; also the ledger's,
        unless that has its own.

    Attributes
    ----------
    ledger : Ledger
        What every round really cost; also without ``ledger_dir``.

    Raises
    ------
    AutoFlipError
        On a wrong option or a model that cannot be pruned, before any node is asked.

    Notes
    -----
    With Flower's central DP inside, ``AutoFlip(DP...(FedAvg()))``, what is aggregated
    is clipped and noised; for nodes' own noise see :mod:`flwr_autoflip.wire.privacy`.
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
        Encoding(value_dtype)  # raises on any other
        hosts.check_inner(strategy, budgets)
        if checkpoint_dir is not None:
            hosts.check_can_resume(strategy)
        self.value_dtype, self.budgets = value_dtype, budgets
        self.layout: Layout = trace(model, example_input, tuple(ignored_layers))
        answering = answering_groups(model, example_input, self.layout)
        self.cost_of = CostOf(model, example_input, self.layout.batch_axis, answering)
        self.checkpoint_dir = None if checkpoint_dir is None else Path(checkpoint_dir)
        folder = self.checkpoint_dir if ledger_dir is None else Path(ledger_dir)
        self.ledger = Ledger(None if folder is None else folder / "ledger.jsonl")
        self._folders = [f for f in (self.checkpoint_dir, folder) if f is not None]
        self._beginning = Beginning(strategy)
        self._run: Run | None = None

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
        num_rounds, timeout, train_config, evaluate_config
            Flower's; the first is 3, or what an inner ``start`` of its own says.
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
            If ``initial_arrays`` are not the model's, no node's training counted, or
            the folder is in use, another run's, or damaged.
        """
        hosts.check_taken(
            self.strategy,
            num_rounds=num_rounds,
            train_config=train_config,
            evaluate_config=evaluate_config,
            evaluate_fn=evaluate_fn,
            **own,
        )
        begun = RunState.begin(
            self.method, self.layout, initial_arrays, train_config, evaluate_config
        )
        if num_rounds is None:
            num_rounds = hosts.default_rounds(self.strategy)
        noisy = draws_noise(self.strategy) or nodes_draw_noise(grid)
        with claimed(self._folders), self._beginning.restored(noisy):
            key, folder = hosts.weight_key(self.strategy), self.checkpoint_dir
            steps = Steps(
                self.strategy,
                self.method,
                self.value_dtype,
                self.budgets,
                Exchange(self.ledger, self.cost_of, key, timeout),
                folder and folder / REPORTS,
            )
            run = Run.begin(begun, steps, folder, noisy, num_rounds, evaluate_fn)
            self._run = run
            if run.state.trained < num_rounds:
                hosts.wait_for_nodes(grid, self.strategy, timeout)
            result = hosts.run_loop(
                self,
                self.strategy,
                grid,
                run.state.arrays,
                own,
                num_rounds=num_rounds,
                timeout=timeout,
                train_config=run.state.train_config,
                evaluate_config=run.state.evaluate_config,
                evaluate_fn=evaluate_fn and run.evaluate,
            )
            run.steps.rounds.check()
        if isinstance(result, Result) and not len(result.arrays):
            result.arrays = run.state.arrays
        return result

    # --- Steps of Flower's loop; see :class:`.Run` ---

    @property
    def run(self) -> Run:
        """What goes on since the last ``start``."""
        return hosts.started(self._run)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send nodes what the method orders."""
        return self.run.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> Aggregated:
        """Average what nodes trained; the method learns from it."""
        return self.run.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send nodes the deployable model."""
        return self.run.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the nodes' metrics."""
        return self.run.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log the settings, then the inner strategy's."""
        LOGGER.log(INFO, "\t├──> AutoFlip settings:")
        LOGGER.log(INFO, "\t│\t├── Method: %s", self.method)
        LOGGER.log(INFO, "\t│\t└── Values: %s", self.value_dtype)
        self.strategy.summary()

    @property
    def deployable_plan(self) -> Plan:
        """The plan of what a device would run now."""
        return self.run.state.method.plan

    def deployable_model(self, arrays: ArrayRecord) -> nn.Module:
        """Build the small model for deployment, in evaluation mode.

        Parameters
        ----------
        arrays : ArrayRecord
            Dense, such as ``result.arrays``. Without a run the plan is the method's
            first, of these weights.
        """
        values = wire.from_arrayrecord(arrays)
        state = self._run.state.method if self._run else None
        plan = (state or self.method.begin(self.layout, values)[0]).plan
        return shrink_with(self.cost_of.model, plan, values).eval()
