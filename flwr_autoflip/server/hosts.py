"""Small dealings with Flower's strategies, grids and messages."""

import time
from collections.abc import Iterator
from logging import INFO, getLogger
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)
from numpy.typing import NDArray

from .. import wire
from ..errors import AutoFlipError

LOGGER = getLogger("flwr")
_PRIVATE = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)


def layers(strategy: Strategy) -> Iterator[Any]:
    """Walk through strategies that wrap strategies, from the outside."""
    layer: Any = strategy
    while layer is not None:
        yield layer
        layer = getattr(layer, "strategy", None)


def find_attribute(strategy: Strategy, name: str, default: Any) -> Any:
    """Look an attribute up through strategies that wrap strategies."""
    for layer in layers(strategy):
        if hasattr(layer, name):
            return getattr(layer, name)
    return default


def check_inner(strategy: Strategy, budgets: bool) -> None:
    """Raise ``AutoFlipError`` if a strategy cannot work inside AutoFlip.

    With budgets a node's reply is completed by the others' average, which Flower's
    differential privacy, if it is among the wrappers, does not bound.
    """
    if hasattr(strategy, "configure_fit"):
        raise AutoFlipError(
            f"{type(strategy).__name__} is of Flower's older API: take its namesake "
            "from flwr.serverapp.strategy, or serve the whole app by "
            "autoflip_server(server_fn, ...)."
        )
    if not isinstance(strategy, Strategy):
        raise AutoFlipError(
            "expected a strategy of flwr.serverapp.strategy, such as FedAvg(), got "
            f"{strategy!r}."
        )
    if find_attribute(strategy, "fraction_train", 1.0) == 0:
        raise AutoFlipError("fraction_train is 0: no node would ever train.")
    if budgets and any(isinstance(layer, _PRIVATE) for layer in layers(strategy)):
        raise AutoFlipError(
            "budgets=True puts others' average where a node did not train, so that "
            "clipping a reply no longer bounds what one node contributes: leave "
            "budgets or differential privacy out."
        )


def check_started(started: bool) -> None:
    """Raise ``AutoFlipError`` if another strategy runs the rounds of ours."""
    if not started:
        raise AutoFlipError(
            "AutoFlip explores before round 1 and so has to be the outermost strategy: "
            "AutoFlip(DifferentialPrivacy...(FedAvg())), not the other way round; and "
            "start it with its own start()."
        )


def only_averages(strategy: Strategy) -> bool:
    """Tell whether a strategy aggregates as FedAvg does: the weighted mean, as it is.

    Then it does not matter which numbers of a model a reply holds.
    """
    own = getattr(type(strategy), "aggregate_train", None)
    return own is FedAvg.aggregate_train and "aggregate_train" not in vars(strategy)


def weight_key(strategy: Strategy) -> str:
    """Name under which the innermost strategy looks for a reply's weight."""
    return str(find_attribute(strategy, "weighted_by_key", wire.NUM_EXAMPLES))


def needed_metrics(strategy: Strategy) -> tuple[str, ...]:
    """Names of metrics without which a strategy cannot aggregate a node's training.

    q-FedAvg weighs nodes by their loss; adaptive clipping asks each whether it clipped.
    """
    loss = find_attribute(strategy, "train_loss_key", None)
    adaptive = DifferentialPrivacyClientSideAdaptiveClipping
    clips = any(isinstance(layer, adaptive) for layer in layers(strategy))
    return (*([] if loss is None else [str(loss)]), *(["norm_bit"] if clips else []))


def wait_for_nodes(grid: Grid, minimum: int, timeout: float | None) -> None:
    """Wait until enough nodes are there: FedAvg counts them before it waits.

    Parameters
    ----------
    grid : Grid
    minimum : int
    timeout : float or None
        Seconds to wait at most; None waits for ever.

    Raises
    ------
    AutoFlipError
        If they are not there by then.
    """
    end = float("inf") if timeout is None else time.monotonic() + timeout
    while (count := len(list(grid.get_node_ids()))) < minimum:
        left = end - time.monotonic()
        if left <= 0:
            raise AutoFlipError(
                f"{count} of {minimum} nodes are connected after {timeout:g} seconds; "
                "start more, lower the inner strategy's min_available_nodes, or raise "
                "start's timeout."
            )
        LOGGER.log(INFO, "Waiting for nodes to connect: %s of %s.", count, minimum)
        time.sleep(min(1, left))


def with_config(message: Message, extra: dict[str, Any]) -> Message:
    """Copy a message with more keys in its ConfigRecord."""
    configs = wire.records_of(message.content, ConfigRecord)
    key, config = next(iter(configs.items()))
    content = RecordDict({**wire.records_of(message.content, ArrayRecord)})
    content[key] = ConfigRecord({**config, **extra})
    metadata = message.metadata
    return Message(
        content, dst_node_id=metadata.dst_node_id, message_type=metadata.message_type
    )


def update_inplace(record: ArrayRecord, arrays: dict[str, NDArray[Any]]) -> None:
    """Change a record's arrays; the inner strategy that holds it sees them too.

    FedAvgM keeps the record it returned as its own idea of the global model.
    """
    for name, array in wire.to_arrayrecord(arrays).items():
        record[name] = array
