"""Flower's strategies, grids and messages: what a strategy around others must know."""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from logging import ERROR, INFO, getLogger
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flowers
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from numpy.typing import NDArray

from .. import wire
from ..errors import AutoFlipError, WireError, visible
from ..ledger.ledger import Ledger

LOGGER = getLogger("flwr")
T = TypeVar("T")
_PRIVATE = (
    flowers.DifferentialPrivacyClientSideAdaptiveClipping,
    flowers.DifferentialPrivacyClientSideFixedClipping,
    flowers.DifferentialPrivacyServerSideAdaptiveClipping,
    flowers.DifferentialPrivacyServerSideFixedClipping,
)


# --- Strategies around strategies ---


def layers(strategy: Strategy) -> Iterator[Any]:
    """Walk through strategies that wrap strategies, from the outside."""
    layer: Any = strategy
    while layer is not None:
        yield layer
        layer = getattr(layer, "strategy", None)


def find_attribute(strategy: Strategy, name: str, default: Any) -> Any:
    """Look an attribute up through strategies that wrap strategies."""
    found = (getattr(layer, name) for layer in layers(strategy) if hasattr(layer, name))
    return next(found, default)


def check_inner(strategy: Strategy, budgets: bool) -> None:
    """Raise ``AutoFlipError`` if a strategy cannot work inside AutoFlip.

    With budgets a node's reply is filled with the others' average, which Flower's
    differential privacy, if it is among the wrappers, does not bound.
    """
    if hasattr(strategy, "configure_fit"):
        raise AutoFlipError(
            f"{type(strategy).__name__} is of Flower's legacy API: take its namesake "
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
            "budgets=True fills in others' average where a node did not train, so that "
            "clipping a reply no longer bounds what one node contributes: leave "
            "budgets or differential privacy out."
        )


def started(run: T | None) -> T:
    """Give the run, or raise ``AutoFlipError``: another strategy runs our rounds."""
    if run is None:
        raise AutoFlipError(
            "AutoFlip has to be the outermost strategy: "
            "AutoFlip(DifferentialPrivacy...(FedAvg())), not the other way round; and "
            "start it with its own start()."
        )
    return run


def only_averages(strategy: Strategy) -> bool:
    """Tell whether a strategy aggregates as FedAvg does: the weighted mean, as it is.

    Then it does not matter which numbers of a model a reply holds.
    """
    own = getattr(type(strategy), "aggregate_train", None)
    return own is FedAvg.aggregate_train and "aggregate_train" not in vars(strategy)


def weight_key(strategy: Strategy) -> str:
    """Name under which the innermost strategy looks for a reply's weight."""
    return str(find_attribute(strategy, "weighted_by_key", wire.keys.NUM_EXAMPLES))


def check_metrics(strategy: Strategy, reply: wire.Reply) -> None:
    """Raise ``WireError`` if a strategy cannot aggregate a reply for want of a metric.

    q-FedAvg weighs nodes by their loss; adaptive clipping asks each whether it clipped.
    """
    loss = find_attribute(strategy, "train_loss_key", None)
    clips = any(isinstance(layer, _PRIVATE[0]) for layer in layers(strategy))
    for name in (loss, "norm_bit" if clips else None):
        if name is not None and not isinstance(reply.metrics.get(name), (int, float)):
            raise WireError(
                f"the inner strategy needs the metric {name!r} of every node, a "
                f"finite number. {reply.unusable}"
            )


# --- Grids and messages ---


def wait_for_nodes(grid: Grid, strategy: Strategy, timeout: float | None) -> None:
    """Wait for ``min_available_nodes``, which FedAvg counts before it waits.

    Raises ``AutoFlipError`` if the strategy's ``min_available_nodes`` are not connected
    within so many seconds; None waits for ever.
    """
    minimum = int(find_attribute(strategy, "min_available_nodes", 1))
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


def with_config(messages: Sequence[Message], extra: dict[str, Any]) -> list[Message]:
    """Copy messages with more keys in their ConfigRecord; what shared a content does.

    Requests are built once a content.
    """
    contents: dict[int, RecordDict] = {}
    copies = []
    for message in messages:
        given, metadata = message.content, message.metadata
        if id(given) not in contents:
            key, config = next(iter(wire.records_of(given, ConfigRecord).items()))
            content = RecordDict({**wire.records_of(given, ArrayRecord)})
            content[key] = ConfigRecord({**config, **extra})
            contents[id(given)] = content
        content = contents[id(given)]
        copies.append(Message(content, metadata.dst_node_id, metadata.message_type))
    return copies


def update_inplace(record: ArrayRecord, arrays: dict[str, NDArray[Any]]) -> None:
    """Change a record's arrays; the inner strategy that holds it sees them too.

    FedAvgM keeps the record it returned as its own idea of the global model.
    """
    for name, array in wire.to_arrayrecord(arrays).items():
        record[name] = array


# --- Rounds that are lost ---


@dataclass
class Rounds:
    """Calls the inner strategy: what it raises costs a round, never the run."""

    ledger: Ledger
    lost: dict[int, str] = field(default_factory=dict)

    def attempt(
        self, what: str, server_round: int, instead: T, work: Callable[[], T]
    ) -> T:
        """Call the inner strategy's method ``what``; give ``instead`` if it raises."""
        try:
            return work()
        except Exception as error:
            fault = visible(f"{what} raised {type(error).__name__}: {error}")
            LOGGER.log(ERROR, "\t> this round is lost, the model stays: %s", fault)
            if what.endswith("_train"):
                self.lost[server_round] = fault
            return instead

    def choose(self, inner: Strategy, phase: str, *args: Any) -> list[Message]:
        """Let the inner strategy choose a phase's nodes; none if it raises."""
        what, none = f"configure_{phase}", list[Message]()
        configure = getattr(inner, what)
        return self.attempt(what, args[0], none, lambda: list(configure(*args)))

    def check(self) -> None:
        """Raise ``AutoFlipError`` if nodes were to train, and nothing came of it.

        Such a run must not look like one that saved most of its bytes.
        """
        rows = [row for row in self.ledger.rows if row["phase"] == "train"]
        trained = {row["round"] for row in rows if row["status"] == "ok"}
        if trained - set(self.lost) or not (rows or self.lost):
            return
        reasons = [*dict.fromkeys(self.lost.values()), *self.ledger.reasons("train")]
        more = len(reasons) - 3
        raise AutoFlipError(
            "no node's training counted in any round, the model is the one that the "
            f"run began with: {'; '.join(reasons[:3])}"
            f"{f'; and {more} other reasons' if more > 0 else ''}"
        )


# --- A strategy's own start() ---


def find_own_start(strategy: Strategy) -> Strategy | None:
    """Find the outermost of strategies around strategies that overrides ``start``."""
    for layer in layers(strategy):
        if getattr(type(layer), "start", Strategy.start) is not Strategy.start:
            return layer  # type: ignore[no-any-return]
    return None


def check_can_resume(strategy: Strategy) -> None:
    """Raise ``AutoFlipError`` if a stop would make a strategy's ``start`` go wrong."""
    if own := find_own_start(strategy):
        raise AutoFlipError(
            f"{type(own).__name__} overrides start(), which after a stop would see the "
            "rounds that are done again, with the last one's model: leave "
            "checkpoint_dir out, or move what it does into evaluate_fn."
        )


def _start_of(strategy: Strategy) -> Mapping[str, inspect.Parameter]:
    own = find_own_start(strategy)
    start = Strategy.start if own is None else type(own).start
    return inspect.signature(start).parameters


def _takes(strategy: Strategy, name: str) -> bool:
    parameters = _start_of(strategy)
    return name in parameters or any(
        p.kind is p.VAR_KEYWORD for p in parameters.values()
    )


def default_rounds(strategy: Strategy) -> int:
    """Give how many rounds a run has of which nobody says so: Flower's default.

    An inner strategy's own ``start`` may have another.
    """
    default = getattr(_start_of(strategy).get("num_rounds"), "default", None)
    return default if isinstance(default, int) else 3


def check_taken(strategy: Strategy, **given: Any) -> None:
    """Raise ``TypeError`` if neither ``start`` takes what was given; None was not."""
    names = [name for name, value in given.items() if value is not None]
    if unknown := [name for name in names if not _takes(strategy, name)]:
        raise TypeError(f"start() takes no {', '.join(map(repr, unknown))}")


def run_loop(
    steps: Strategy,
    inner: Strategy,
    grid: Grid,
    arrays: ArrayRecord,
    own: Mapping[str, Any],
    **given: Any,
) -> Result:
    """Run Flower's loop, or an inner strategy's own ``start``, around our steps.

    People put into ``start()`` what a run does besides its rounds: save the best model,
    write a table. It runs on a *view*: an object of a subclass that shares all
    attributes with the strategy, and whose steps are ours. So ``super().start(...)`` in
    it, or a copy of Flower's loop, calls AutoFlip.

    ``given`` are Flower's arguments, ``own`` what only the inner ``start`` takes.
    Raises ``AutoFlipError`` if the rounds of one went past ``steps``.
    """
    found = find_own_start(inner)
    if found is None:
        return Strategy.start(steps, grid, arrays, **given)
    asked: list[int] = []

    def configure_train(server_round: int, *args: Any, **kwargs: Any) -> Any:
        asked.append(server_round)
        return steps.configure_train(server_round, *args, **kwargs)

    kind = type(found)
    names = "aggregate_train", "configure_evaluate", "aggregate_evaluate", "summary"
    ours = {name: staticmethod(getattr(steps, name)) for name in names}
    ours["configure_train"] = staticmethod(configure_train)
    view: Any = object.__new__(type(f"AutoFlip{kind.__name__}", (kind,), ours))
    view.__dict__ = found.__dict__
    taken = {name: value for name, value in given.items() if _takes(inner, name)}
    result: Result = view.start(grid, arrays, **taken, **own)
    if given["num_rounds"] and not asked:
        raise AutoFlipError(
            f"{kind.__name__}.start never asked AutoFlip for a round's messages: its "
            "rounds have to call self.configure_train, or super().start(...)."
        )
    return result
