"""Apps with a ``server_fn``: strategies of Flower's legacy API inside ``AutoFlip``.

The only module that knows ``flwr.server``, where that API lives on beside the message
API that everything else here speaks.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from flwr import common
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.app import RecordDict as Records
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.strategy import Strategy as LegacyStrategy
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from torch import nn

from .. import wire
from ..errors import AutoFlipError
from .strategy import AutoFlip

_DONE = common.Status(common.Code.OK, "")


def autoflip_server(
    server_fn: Callable[[Context], ServerAppComponents],
    model_fn: Callable[[], nn.Module],
    example_input: Any,
    **options: Any,
) -> ServerApp:
    """Serve an app's ``server_fn`` with AutoFLIP, for ``ServerApp(server_fn=...)``.

    Its nodes run ``ClientApp(client_fn, mods=[autoflip_mod])``, or an
    :class:`.AutoFlipClient` behind ``client_fn``.

    Parameters
    ----------
    server_fn : callable
        As it is: context -> ServerAppComponents with a strategy and a config.
    model_fn : callable
        Gives the dense model, such as the model's class.
    example_input : Tensor, tuple or mapping of str to object
        What its ``forward`` takes, a batch of one; see :class:`.AutoFlip`.
    **options
        For :class:`.AutoFlip`.

    Returns
    -------
    ServerApp

    Raises
    ------
    AutoFlipError
        When it runs: if the app has a ``Server`` of its own, or its strategy sends
        nodes models of its own.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        parts = server_fn(context)
        if parts.server is not None:
            raise AutoFlipError(
                "server_fn gives a Server of its own, which AutoFlip would replace; "
                "leave it out, or move what it does into the strategy."
            )
        legacy, config = parts.strategy or FedAvg(), parts.config or ServerConfig()
        model = model_fn()
        arrays = ArrayRecord(model.state_dict())
        given = legacy.initialize_parameters(SimpleClientManager())
        if given is not None:
            arrays = _named(given, list(arrays))

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            found = legacy.evaluate(server_round, _parameters(arrays))
            return None if found is None else _with_loss(*found)

        inner = Legacy(legacy)
        strategy = AutoFlip(inner, model, example_input, **options)
        strategy.start(
            grid,
            arrays,
            num_rounds=config.num_rounds,
            timeout=config.round_timeout,
            evaluate_fn=evaluate,
        )

    return app


class Legacy(Strategy):
    """A strategy of Flower's legacy API, seen as one of the message API."""

    weighted_by_key = wire.keys.NUM_EXAMPLES

    def __init__(self, strategy: LegacyStrategy) -> None:
        self.legacy = strategy

    @property
    def fraction_train(self) -> float:
        """Fraction of nodes that train in a round."""
        return float(getattr(self.legacy, "fraction_fit", 1.0))

    @property
    def fraction_evaluate(self) -> float:
        """Fraction of nodes that evaluate in a round."""
        return float(getattr(self.legacy, "fraction_evaluate", 1.0))

    @property
    def min_available_nodes(self) -> int:
        """How many nodes have to be there."""
        return int(getattr(self.legacy, "min_available_clients", 1))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the nodes that ``configure_fit`` chooses, with its configuration."""
        return self._messages("train", server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let ``aggregate_fit`` average the nodes' dense models."""
        results: list[tuple[ClientProxy, common.FitRes]] = []
        names: list[str] = []
        for message in replies:
            record = next(iter(wire.records_of(message.content, ArrayRecord).values()))
            names, (count, metrics) = list(record), _counted(message)
            answer = common.FitRes(
                _DONE, _parameters(record, floats=True), count, metrics
            )
            results.append((_Node(message.metadata.src_node_id), answer))
        found, metrics = self.legacy.aggregate_fit(server_round, results, [])
        arrays = None if found is None else _named(found, names)
        return arrays, MetricRecord(_numbers(metrics))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the nodes that the strategy's own ``configure_evaluate`` chooses."""
        return self._messages("evaluate", server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the strategy's own ``aggregate_evaluate`` average losses and metrics."""
        results: list[tuple[ClientProxy, common.EvaluateRes]] = []
        for message in replies:
            count, metrics = _counted(message)
            answer = common.EvaluateRes(
                _DONE, float(metrics.pop("loss")), count, metrics
            )
            results.append((_Node(message.metadata.src_node_id), answer))
        loss, metrics = self.legacy.aggregate_evaluate(server_round, results, [])
        return None if loss is None else _with_loss(loss, metrics)

    def summary(self) -> None:
        """Say nothing: strategies of the legacy API have no summary."""

    def _messages(
        self,
        kind: str,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> list[Message]:
        """Make one message a node that is chosen; values are AutoFlip's to add."""
        manager, parameters = SimpleClientManager(), _parameters(arrays)
        for node_id in grid.get_node_ids():
            manager.register(_Node(node_id))
        choose: Any = self.legacy.configure_evaluate
        if kind == "train":
            choose = self.legacy.configure_fit
        contents: dict[int, Records] = {}
        messages = []
        for node, ins in choose(server_round, parameters, manager):
            if ins.parameters is not parameters:
                raise AutoFlipError(
                    "the strategy sends nodes models of its own; AutoFlip ships the "
                    "global one, of which each node gets what its plan keeps."
                )
            if id(ins) not in contents:
                own = ConfigRecord({**config, **ins.config})
                contents[id(ins)] = Records({"arrays": ArrayRecord(), "config": own})
            messages.append(Message(contents[id(ins)], int(node.cid), kind))
        return messages


class _Node(ClientProxy):
    """A node's address; strategies only choose it."""

    def __init__(self, node_id: int) -> None:
        super().__init__(str(node_id))
        self.node_id = node_id

    def _unreachable(self, *args: Any, **kwargs: Any) -> Any:
        raise AutoFlipError(
            "the strategy talks to a node outside configure_fit and "
            "configure_evaluate, which AutoFlip cannot carry."
        )

    get_properties = get_parameters = fit = evaluate = reconnect = _unreachable


def _parameters(record: ArrayRecord, *, floats: bool = False) -> common.Parameters:
    """List arrays in order; as floats, since the legacy FedAvg makes 0 of integers."""
    arrays = list(wire.from_arrayrecord(record).values())
    if floats:
        arrays = [a.astype(np.float64) if a.dtype.kind in "iu" else a for a in arrays]
    return common.ndarrays_to_parameters(arrays)


def _named(parameters: common.Parameters, names: Sequence[str]) -> ArrayRecord:
    arrays = common.parameters_to_ndarrays(parameters)
    if len(arrays) != len(names):
        raise AutoFlipError(
            f"the strategy gives {len(arrays)} arrays, the model's state_dict has "
            f"{len(names)} tensors; they must be the same, in this order."
        )
    return wire.to_arrayrecord(dict(zip(names, arrays, strict=True)))


def _counted(message: Message) -> tuple[int, dict[str, Any]]:
    records = wire.records_of(message.content, MetricRecord)
    metrics: dict[str, Any] = dict(next(iter(records.values())))
    # What is no number travels beside the numbers.
    metrics |= wire.records_of(message.content, ConfigRecord).get(wire.keys.NOTES, {})
    return int(metrics.pop(wire.keys.NUM_EXAMPLES)), metrics


def _with_loss(loss: float, metrics: dict[str, Any]) -> MetricRecord:
    return MetricRecord({"loss": float(loss), **_numbers(metrics)})


def _numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """Keep what Flower's message API calls a metric: numbers."""
    plain = {k: v.item() if hasattr(v, "item") else v for k, v in metrics.items()}
    return {k: v for k, v in plain.items() if type(v) in (int, float)}
