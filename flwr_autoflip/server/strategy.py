"""AutoFlip: a Flower strategy around any other one. Explore, plan, ship, aggregate."""

from collections.abc import Callable, Iterable, Mapping
from logging import INFO, getLogger
from pathlib import Path
from typing import Any, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray
from torch import nn

from .. import wire
from ..graph.codec import layout_digest
from ..graph.layout import Layout, check_arrays
from ..graph.plan import Plan, dense_plan
from ..graph.shrink import shrink_with
from ..graph.tracing.trace import trace
from ..graph.tracing.verify import answering_groups
from ..ledger.cost import CostOf
from ..ledger.ledger import Ledger
from ..methods.guidance import Report
from ..methods.names import check_used, resolve_policy
from ..methods.rescale import rescale_fan_in
from ..wire.encoding import Encoding
from . import hosts
from .aggregate import Aggregated, aggregate
from .beginning import Beginning
from .checkpoint import CheckpointFolder
from .claim import GUIDANCE, claimed
from .exchange import Exchange
from .explorer import Budgets, Explorer
from .keeper import Keeper
from .options import Options, check_choice, resolve_options
from .outliers import Measure, put_back_buffers, refuse_outliers
from .planner import Planner
from .progress import Progress
from .resume import Resumable
from .snapshot import KINDS
from .store import ReportStore

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
    preset : {"default", "guided", "paper", "authors-code"} (default: "default")
        Where options that are not given come from.
    exclude : sequence of str (default: ())
        Modules whose units all stay; ratios are of the rest.
    compress : bool (default: False)
        Pack values without loss; needs ``flwr-autoflip[compress]`` on both sides.
    client_api : {"message", "numpy"} (default: "message")
        "numpy" for nodes that run Flower's plain ``ClientApp(client_fn)``.
    ledger_dir : path, optional
        Folder for ``ledger.jsonl``.
    checkpoint_dir : path, optional
        Folder from which the same command goes on after a stop. The ledger lies in
        it, too, unless it has a folder of its own.
    evaluate_dense : bool (default: False)
        Call ``evaluate_fn`` a second time a round, with the dense model's arrays; its
        metrics get the prefix ``dense-``.
    **options
        See :class:`flwr_autoflip.Options`.

    Attributes
    ----------
    layout : Layout
    ledger : Ledger
        What every round really cost; also without ``ledger_dir``.

    Raises
    ------
    AutoFlipError
        On a wrong option or a model that cannot be pruned, before any node is asked.

    Notes
    -----
    With Flower's central DP inside, ``AutoFlip(DP...(FedAvg()))``, what is aggregated
    is clipped and noised. Guidance is noised by nodes that want that; see
    :mod:`flwr_autoflip.wire.privacy`.
    """

    def __init__(
        self,
        strategy: Strategy,
        model: nn.Module,
        example_input: Any,
        *,
        preset: str = "default",
        exclude: Iterable[str] = (),
        compress: bool = False,
        client_api: wire.ClientApi = "message",
        ledger_dir: str | Path | None = None,
        checkpoint_dir: str | Path | None = None,
        evaluate_dense: bool = False,
        **options: Unpack[Options],
    ) -> None:
        self.strategy = strategy
        self.options = resolve_options(preset, options)
        self.policy = resolve_policy(self.options)
        check_used(self.policy, self.options, options)
        self.encoding = Encoding(self.options["value_dtype"], compress)
        check_choice("client_api", client_api, ("message", "numpy"))
        hosts.check_inner(strategy, self.options["budgets"])
        if checkpoint_dir is not None:
            hosts.check_can_resume(strategy)
        self.layout: Layout = trace(model, example_input, tuple(exclude))
        answer = answering_groups(model, example_input, self.layout)
        self._cost_of = CostOf(model, example_input, self.layout.batch_axis, answer)
        self._client_api, self._evaluate_dense = client_api, evaluate_dense
        self._checkpoint_dir = None if checkpoint_dir is None else Path(checkpoint_dir)
        folder = self._checkpoint_dir if ledger_dir is None else Path(ledger_dir)
        self.ledger = Ledger(None if folder is None else folder / "ledger.jsonl")
        self._folders = [f for f in (self._checkpoint_dir, folder) if f is not None]
        self._beginning = Beginning(strategy)
        self._begin()

    def _begin(self) -> None:
        """Build all that a run remembers: nothing of a run before is in it."""
        kept = None if self._checkpoint_dir is None else self._checkpoint_dir / GUIDANCE
        reports = ReportStore(layout_digest(self.layout), kept, self.policy.running)
        layout, options = self.layout, self.options
        self._progress = Progress(self.ledger, self._cost_of)
        self._rounds, key = hosts.Rounds(self.ledger), hosts.weight_key(self.strategy)
        exchange = Exchange(self.ledger, self._cost_of, self._client_api, key)
        planner = Planner(self.policy, layout, reports)
        asks, multiple = options["budgets"], options["round_to"]
        budgets = Budgets(exchange, layout, planner.rank_units, asks, multiple)
        self._exchange, self._planner, self._budgets = exchange, planner, budgets
        self._explorer = Explorer(
            self.strategy, exchange, budgets, layout, options, self.encoding, reports
        )
        self._weights: dict[str, NDArray[Any]] = {}
        self._round_plan = dense_plan(self.layout)
        self._evaluated: Plan | None = None

    def start(
        self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **kwargs: Any
    ) -> Result:
        """Explore, then run the rounds; see Flower's ``Strategy.start``.

        Parameters
        ----------
        grid : Grid
        initial_arrays : ArrayRecord
            The dense model's ``state_dict``.
        *args, **kwargs
            Flower's: ``num_rounds``, ``timeout``, ``train_config``,
            ``evaluate_config``, ``evaluate_fn``. The last is called once a round, with
            the deployable model's arrays: zeros where it has nothing. If the inner
            strategy overrides ``start``, that one runs, and may take more.

        Returns
        -------
        Result
            ``arrays`` are the dense global model; :meth:`deployable_model` cuts it.

        Raises
        ------
        AutoFlipError
            If ``initial_arrays`` are not the model's, no explorer answered, another
            run holds the folder, or it holds another run or nothing whole.
        """
        args = (initial_arrays, *args)
        given, more = hosts.bind_start(self.strategy, grid, args, kwargs)
        arrays = wire.from_arrayrecord(initial_arrays)
        check_arrays(self.layout, arrays, whose="initial arrays")
        given["initial_arrays"] = wire.to_arrayrecord(arrays)  # the caller's stays
        if given["evaluate_fn"] is not None:
            given["evaluate_fn"] = self._evaluate_deployable(given["evaluate_fn"])
        with claimed(self._folders), self._beginning.restored():
            self._begin()
            return self._run(given, more)

    def _run(self, given: dict[str, Any], more: dict[str, Any]) -> Result:
        """Explore and run the rounds, or go on with them."""
        self._exchange.timeout, num_rounds = given["timeout"], given["num_rounds"]
        run = None
        if self._checkpoint_dir is None:
            self.ledger.clear()
        else:
            folder = CheckpointFolder(self._checkpoint_dir, KINDS)
            run = Resumable(self, Keeper(folder, self._explorer, self._planner), given)
        last_round = 0 if run is None else run.last_round
        if last_round < num_rounds:
            self.ledger.add_run(last_round)
        if run is None or not run.planned:
            self._explore_and_plan(given)
        record = given["initial_arrays"]
        self._weights = wire.from_arrayrecord(record)
        self._progress.begin(num_rounds)
        self._waits = given["evaluate_fn"] is not None
        self._rounds.begin()
        if own := hosts.find_own_start(self.strategy):
            result = hosts.run_own_start(own, self, given, more)
        else:
            result = super().start(**given) if run is None else run.start(**given)
        self._rounds.check()
        if isinstance(result, Result) and not len(result.arrays):
            result.arrays = record
        return result

    def _explore_and_plan(self, given: dict[str, Any]) -> None:
        """Make the plan before round 1, unless participants decide round by round."""
        record = given["initial_arrays"]
        if self.policy.explores:
            config = given["train_config"] or ConfigRecord()
            record = self._explorer.first(given["grid"], record, config, self.policy)
            given["initial_arrays"] = record
        arrays = wire.from_arrayrecord(record)
        if self.policy.per_round:
            return
        if self.policy.on_change == "restart":
            self._planner.initial = arrays
        plan = self._planner.start(arrays)
        if self.options["rescale"] and self.policy.rescales:
            hosts.update_inplace(record, rescale_fan_in(arrays, plan))
        self._progress.plan_made(0, plan, self._planner.guidance, log=True)
        if not self.options["budgets"]:
            self._explorer.reports.release()

    @property
    def reports(self) -> Mapping[int, Report]:
        """Deviations (Eq. 7) of nodes, from disk: node id to tensor name to array."""
        return self._explorer.reports

    def deployable_plan(self, arrays: ArrayRecord | None = None) -> Plan:
        """Give the plan of what a device will run in the end.

        Parameters
        ----------
        arrays : ArrayRecord, optional
            Dense weights that it is for; left out, those that were evaluated last.
            Only policies with ``renewed="weights"`` look at them.

        Returns
        -------
        Plan
        """
        if self.policy.renewed != "weights":
            return self._planner.deployable(self._weights)
        if arrays is not None:
            return self._planner.deployable(wire.from_arrayrecord(arrays))
        return self._evaluated or self._planner.deployable(self._weights)

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
        plan, values = self.deployable_plan(arrays), wire.from_arrayrecord(arrays)
        return shrink_with(self._cost_of.model, plan, values).eval()

    def _evaluate_deployable(self, evaluate_fn: EvaluateFn) -> EvaluateFn:
        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            plan = self._evaluated = self.deployable_plan(arrays)
            masked = plan.apply(wire.from_arrayrecord(arrays))
            metrics = dict(evaluate_fn(server_round, wire.to_arrayrecord(masked)) or {})
            if self._evaluate_dense:
                whole = plan.num_parameters == self.layout.num_parameters
                dense = metrics if whole else evaluate_fn(server_round, arrays) or {}
                metrics |= {f"dense-{key}": value for key, value in dense.items()}
            self.ledger.add_server(server_round, metrics, self._cost_of.shape(plan))
            self._progress.end_round(server_round, self._round_plan, metrics)
            return MetricRecord(metrics) if metrics else None

        return evaluate

    # --- One round --------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample as the inner strategy does; ship each node its plan's values."""
        hosts.check_started(bool(self._weights))
        if self.policy.renewed != "never":
            self._renew_plan(server_round, arrays)
        sampling = server_round, arrays, config, grid
        templates = self._rounds.choose(self.strategy, "train", *sampling)
        self._weights = wire.from_arrayrecord(arrays)
        if not templates:
            return []
        self._round_plan = self._plan_round(server_round, templates, arrays, grid)
        orders = wire.Orders.of(
            "train",
            self._round_plan,
            self._weights,
            self.encoding,
            regrow=self.options["regrow"],
            probe=self.policy.probes(server_round),
        )
        work = self._budgets.share_out(
            server_round, grid, templates, orders, self._weights
        )
        return self._exchange.requests(server_round, work)

    def _renew_plan(self, server_round: int, arrays: ArrayRecord) -> None:
        """Make the round's plan; set the weights in place as it asks for."""
        weights, planner = wire.from_arrayrecord(arrays), self._planner
        adapted = planner.renew(server_round, weights, self.options["rescale"])
        if adapted is not None:
            hosts.update_inplace(arrays, adapted)
            held, scores = planner.held, planner.guidance
            self._progress.plan_made(server_round, held, scores, log=True)

    def _plan_round(
        self,
        server_round: int,
        templates: list[Message],
        arrays: ArrayRecord,
        grid: Grid,
    ) -> Plan:
        if self.policy.per_round and self.policy.explores:
            self._explorer.visit_new(server_round, grid, templates, arrays)
        nodes = [template.metadata.dst_node_id for template in templates]
        plan = self._planner.of_round(server_round, self._weights, nodes)
        self._progress.plan_made(server_round, plan, self._planner.guidance)
        return plan

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Expand valid replies and let the inner strategy average them."""
        checks = Measure(self.strategy), refuse_outliers
        answers = put_back_buffers(self._exchange.replies(replies, *checks))
        if not answers:
            LOGGER.warning("\t> no valid reply: the global model stays as it was")
            return None, None
        for reply in (answer.reply for answer in answers if answer.reply.probe):
            self._planner.add_probe(reply.probe, reply.num_examples)
        zero = self.options["untrained"] == "zero"
        work = self.strategy, server_round, answers, self._weights, zero
        nothing: Aggregated = None, None
        args = "aggregate_train", nothing, aggregate, *work
        aggregated, metrics = self._rounds.attempt(*args)
        if aggregated is not None:
            self._weights = wire.from_arrayrecord(aggregated)
            self._rounds.note_trained()
        return aggregated, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the deployable model, or what fits, to the sampled nodes."""
        sampling = server_round, arrays, config, grid
        templates = self._rounds.choose(self.strategy, "evaluate", *sampling)
        if not templates:
            return []
        plan, weights = self.deployable_plan(arrays), wire.from_arrayrecord(arrays)
        orders = wire.Orders.of("evaluate", plan, weights, self.encoding)
        work = self._budgets.share_out(server_round, grid, templates, orders, weights)
        return self._exchange.requests(server_round, work)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the inner strategy average the valid replies' metrics."""
        answers = self._exchange.replies(replies, lambda reply, orders: None)
        for answer in answers:
            key = hosts.weight_key(self.strategy)
            wire.inner_reply(answer.message, None, answer.reply, key)
        accepted = [answer.message for answer in answers]
        metrics = None
        if accepted:
            average = self.strategy.aggregate_evaluate
            args = None, average, server_round, accepted
            metrics = self._rounds.attempt("aggregate_evaluate", *args)
        if not self._waits:
            self._progress.end_round(server_round, self._round_plan, metrics)
        return metrics

    def summary(self) -> None:
        """Log the settings, then the inner strategy's."""
        LOGGER.log(INFO, "\t├──> AutoFlip settings:")
        LOGGER.log(INFO, "\t│\t├── Policy: %s", self.policy)
        LOGGER.log(INFO, "\t│\t└── Values: %s", self.encoding.dtype)
        self.strategy.summary()
