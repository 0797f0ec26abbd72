"""AutoFlip: a Flower strategy around any other one. Explore, plan, ship, aggregate."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from logging import INFO, getLogger
from pathlib import Path
from typing import Any, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray
from torch import nn

from . import wire
from .core.aggregate import settle
from .core.codec import VALUE_DTYPES, expand, pack
from .core.errors import AutoFlipError
from .core.guidance import Report
from .core.layout import Layout, check_arrays
from .core.plan import Plan, dense_plan
from .core.rescale import rescale_fan_in
from .core.shrink import load_arrays_inplace, shrink
from .core.trace import trace
from .exchange import CostOf, Exchange, log_round
from .explorer import Explorer
from .hosts import find_attribute, update_inplace, weight_key
from .ledger import Ledger
from .planner import Planner
from .policies import Policy
from .presets import Options, resolve_options, resolve_policy

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
    example_input : Tensor or tuple of Tensor
        What its ``forward`` takes, a batch of one.
    preset : {"default", "paper", "authors-code"} (default: "default")
        Where options that are not given come from.
    policy : Policy or str (default: "autoflip")
        Who stays: a name in :func:`flwr_autoflip.presets.resolve_policy`, or your own.
    exclude : sequence of str (default: ())
        Modules whose units all stay.
    value_dtype : {"float32", "float16"} (default: "float32")
        Values on the wire, both ways.
    client_api : {"message", "numpy"} (default: "message")
        "numpy" for nodes that run Flower's plain ``ClientApp(client_fn)``.
    ledger_dir : path, optional
        Folder for ``ledger.jsonl``.
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
    is clipped and noised; the guidance is not.
    """

    def __init__(
        self,
        strategy: Strategy,
        model: nn.Module,
        example_input: Any,
        *,
        preset: str = "default",
        policy: Policy | str = "autoflip",
        exclude: Iterable[str] = (),
        value_dtype: str = "float32",
        client_api: wire.ClientApi = "message",
        ledger_dir: str | Path | None = None,
        **options: Unpack[Options],
    ) -> None:
        self.strategy = strategy
        self.options = resolve_options(preset, options)
        self.policy = resolve_policy(policy, self.options)
        self.value_dtype = value_dtype
        _check_setting("value_dtype", value_dtype, VALUE_DTYPES)
        _check_setting("client_api", client_api, ("message", "numpy"))
        if find_attribute(strategy, "fraction_train", 1.0) == 0:
            raise AutoFlipError("fraction_train is 0: no node would ever train.")
        self.layout: Layout = trace(model, example_input, tuple(exclude))
        path = None if ledger_dir is None else Path(ledger_dir) / "ledger.jsonl"
        self.ledger = Ledger(path)
        self._cost_of = CostOf(model, example_input)
        self._exchange = Exchange(
            self.ledger, self._cost_of, client_api, weight_key(strategy)
        )
        self._explorer = Explorer(
            strategy, self._exchange, self.layout, self.options, value_dtype
        )
        self._planner = Planner(self.policy, self.layout, self._explorer.reports)
        self._weights: dict[str, NDArray[Any]] = {}
        self._initial: dict[str, NDArray[Any]] = {}
        self._round_plan = dense_plan(self.layout)
        self._evaluated: Plan | None = None

    # --- The run --------------------------------------------------------------------

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
            ``evaluate_config``, ``evaluate_fn``. The last is called with the
            deployable model's arrays (zeros where it has nothing) and once more with
            the dense ones, whose metrics get the prefix ``dense-``.

        Returns
        -------
        Result
            ``arrays`` are the dense global model; :meth:`deployable_model` cuts it.

        Raises
        ------
        AutoFlipError
            If ``initial_arrays`` are not the model's, or no explorer answered.
        """
        bound = inspect.signature(Strategy.start).bind(
            self, grid, initial_arrays, *args, **kwargs
        )
        bound.apply_defaults()
        given = bound.arguments
        arrays = wire.from_arrayrecord(initial_arrays)
        check_arrays(self.layout, arrays, whose="initial arrays")
        self._explorer.timeout = given["timeout"]
        config = given["train_config"] or ConfigRecord()
        record = wire.to_arrayrecord(arrays)  # ours to edit; the caller's stays
        if self.policy.explores:
            record = self._explorer.first(grid, record, config, self.policy)
        self._plan_run(record)
        if given["evaluate_fn"] is not None:
            given["evaluate_fn"] = self._evaluate_both(given["evaluate_fn"])
        given["initial_arrays"] = record
        result = super().start(*bound.args[1:], **bound.kwargs)
        if not len(result.arrays):
            result.arrays = record
        return result

    def _plan_run(self, record: ArrayRecord) -> None:
        """Make the plan before round 1, unless participants decide round by round."""
        arrays = self._weights = wire.from_arrayrecord(record)
        if self.policy.per_round:
            return
        if self.policy.restarts:
            self._initial = arrays
        plan = self._planner.start(arrays)
        if self.options["rescale"] and self.policy.renewed == "never":
            scaled = rescale_fan_in(arrays, plan)
            update_inplace(record, scaled)
        self._log_plan(plan)

    @property
    def reports(self) -> Mapping[int, Report]:
        """Deviations (Eq. 7) that nodes reported: node id to tensor name to array."""
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
        plan, model = self.deployable_plan(arrays), self._cost_of.model
        small = shrink(model, plan)
        values = plan.apply(wire.from_arrayrecord(arrays))
        load_arrays_inplace(small, {n: plan.take(n, a) for n, a in values.items()})
        return small.eval()

    def _evaluate_both(self, evaluate_fn: EvaluateFn) -> EvaluateFn:
        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            plan = self._evaluated = self.deployable_plan(arrays)
            masked = plan.apply(wire.from_arrayrecord(arrays))
            small = evaluate_fn(server_round, wire.to_arrayrecord(masked))
            whole = plan.num_parameters == self.layout.num_parameters
            dense = small if whole else evaluate_fn(server_round, arrays)
            metrics = dict(small or {})
            metrics |= {f"dense-{key}": value for key, value in (dense or {}).items()}
            cost = self._cost_of.plan(plan)
            shape = {
                "parameters": plan.num_parameters,
                "zeros": cost.parameters - plan.num_parameters,
                "bytes": cost.bytes,
                "dense_parameters": self.layout.num_parameters,
                "macs": cost.macs,
                "dense_macs": self._cost_of.dense().macs,
                "units": {name: len(kept) for name, kept in plan.keep.items()},
            }
            self.ledger.add_server(server_round, metrics, shape)
            return MetricRecord(metrics) if metrics else None

        return evaluate

    # --- One round --------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample as the inner strategy does; ship each node its plan's values."""
        if self.policy.renewed != "never":
            self._renew_plan(server_round, arrays)
        templates = list(
            self.strategy.configure_train(server_round, arrays, config, grid)
        )
        self._weights = wire.from_arrayrecord(arrays)
        if not templates:
            return []
        self._round_plan = self._plan_round(server_round, templates, arrays, grid)
        orders = wire.Orders(
            "train",
            self._round_plan,
            pack(self._weights, self._round_plan, self.value_dtype),
            self.value_dtype,
            self.options["regrow"],
            probe=self.policy.probes(server_round),
        )
        return self._exchange.requests(server_round, templates, orders)

    def _renew_plan(self, server_round: int, arrays: ArrayRecord) -> None:
        """Make the round's plan; start afresh in place if it asks for that."""
        plan = self._planner.renew(server_round, wire.from_arrayrecord(arrays))
        if plan is None or not self.policy.restarts:
            return
        rescale = self.options["rescale"]
        fresh = rescale_fan_in(self._initial, plan) if rescale else self._initial
        update_inplace(arrays, fresh)
        self._log_plan(plan)

    def _plan_round(
        self,
        server_round: int,
        templates: list[Message],
        arrays: ArrayRecord,
        grid: Grid,
    ) -> Plan:
        if self.policy.per_round and self.policy.explores:
            late = [
                t
                for t in templates
                if t.metadata.dst_node_id not in self._explorer.reports
            ]
            if late:
                self._explorer.visit(server_round, grid, late, arrays)
        nodes = [template.metadata.dst_node_id for template in templates]
        return self._planner.of_round(server_round, self._weights, nodes)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Expand valid replies and let the inner strategy average them."""
        plan = self._round_plan
        trained = plan.without_mask() if self.options["regrow"] else plan

        def read(reply: wire.Reply) -> dict[str, NDArray[Any]]:
            return expand(self._weights, reply.values, trained)

        accepted = []
        for message, reply, full in self._exchange.replies(replies, read):
            if reply.probe:
                self._planner.add_probe(reply.probe, reply.num_examples)
            wire.inner_reply(message, full, reply, weight_key(self.strategy))
            accepted.append(message)
        if not accepted:
            LOGGER.warning("\t> no valid reply: the global model stays as it was")
            return None, None
        aggregated, metrics = self.strategy.aggregate_train(server_round, accepted)
        if aggregated is not None:
            arrays = wire.from_arrayrecord(aggregated)
            zero = self.options["untrained"] == "zero"
            settled = settle(arrays, self._weights, trained, zero=zero)
            update_inplace(aggregated, settled)
            self._weights = settled
        log_round(self.ledger, server_round, plan)
        return aggregated, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the deployable model to the nodes that the inner strategy samples."""
        templates = list(
            self.strategy.configure_evaluate(server_round, arrays, config, grid)
        )
        if not templates:
            return []
        plan, weights = self.deployable_plan(arrays), wire.from_arrayrecord(arrays)
        orders = wire.Orders("evaluate", plan, pack(weights, plan, self.value_dtype))
        return self._exchange.requests(server_round, templates, orders)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the inner strategy average the valid replies' metrics."""
        accepted: list[Message] = []
        for message, reply, _ in self._exchange.replies(replies, lambda reply: None):
            wire.inner_reply(message, None, reply, weight_key(self.strategy))
            accepted.append(message)
        if not accepted:
            return None
        return self.strategy.aggregate_evaluate(server_round, accepted)

    def summary(self) -> None:
        """Log the settings, then the inner strategy's."""
        LOGGER.log(INFO, "\t├──> AutoFlip settings:")
        LOGGER.log(INFO, "\t│\t├── Policy: %s", self.policy)
        LOGGER.log(INFO, "\t│\t└── Values: %s", self.value_dtype)
        self.strategy.summary()

    def _log_plan(self, plan: Plan) -> None:
        small, dense = self._cost_of.plan(plan), self._cost_of.dense()
        LOGGER.log(
            INFO,
            "\t└──> plan: %d of %d units, %d of %d parameters, %.1f %% of MACs",
            int(plan.alive.sum()),
            self.layout.num_units,
            plan.num_parameters,
            self.layout.num_parameters,
            100 * small.macs / dense.macs,
        )


def _check_setting(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise AutoFlipError(f"{name} must be one of {choices}, got {value!r}.")
