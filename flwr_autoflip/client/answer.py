"""What a node answers, whether a client's small model trained or an app's dense one."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from numpy.typing import NDArray

from .. import wire
from ..errors import AutoFlipWarning, WireError
from ..graph.budget import Budget, parse_budget
from ..graph.codec import VERSION
from ..graph.layout import Arrays
from ..graph.plan import Plan
from ..wire.encoding import largest
from ..wire.privacy import ReportPrivacy, parse_privacy

# --- What the node says of itself ---


def budget_of(context: Context, given: str | None = None) -> Budget | None:
    """Read a node's budget: the one given, or its ``--node-config``'s."""
    value = context.node_config.get(wire.keys.BUDGET) if given is None else given
    return parse_budget(value, whose=f"node {context.node_id}")


def privacy_of(context: Context, given: str | None = None) -> ReportPrivacy | None:
    """Read a node's privacy: the one given, or its ``--node-config``'s."""
    value = context.node_config.get(wire.keys.PRIVACY) if given is None else given
    return parse_privacy(value, whose=f"node {context.node_id}")


def metadata_of(
    request: wire.Request, parameters: int, seconds: float
) -> dict[str, Any]:
    """Say which plan was trained, how large the model was and how long it took."""
    return {
        wire.keys.VERSION: VERSION,
        wire.keys.DIGEST: request.instructions.digest,
        wire.keys.PARAMETERS: parameters,
        wire.keys.SECONDS: seconds,
    }


def budget_reply(request: wire.Request, budget: Budget | None) -> RecordDict:
    """Say what the node can carry."""
    metadata = metadata_of(request, parameters=0, seconds=0.0)
    metadata |= {wire.keys.EXAMPLES: 0, wire.keys.BUDGET: str(budget or "")}
    nothing = np.zeros(0, np.float32)
    return wire.reply_content({wire.keys.NUM_EXAMPLES: 1}, metadata, nothing)


def check_budget(request: wire.Request, budget: Budget | None) -> None:
    """Refuse work that was cut to another budget than this node's, or to none."""
    sent, own = request.instructions.budget, str(budget or "")
    if request.instructions.phase != "budget" and sent != own:
        raise WireError(
            f"this node's budget is {own or 'none'!r}, but the server sent what fits "
            f"{sent or 'none'!r}; set budgets=True in the server's AutoFlip. If it is "
            "set, the budget changed and is asked for again."
        )


# --- What it sends: values, or a report, with noise where the node wants that ---

_LOCK = Lock()
_EXPLORING: set[tuple[int, int]] = set()
"""Run and node of every noised report that is being made in this process."""


@contextmanager
def one_release(
    request: wire.Request, privacy: ReportPrivacy | None, context: Context
) -> Iterator[None]:
    """Refuse to explore, before any work, where the report could not be private.

    Noise protects one release: a ``WireError`` if the server asks for more than units'
    sums, or for a second report. Inside, no other request of this run makes this node
    explore. That holds within a process; of two processes that answer at once, each
    with the node's state as it was before either, neither can see the other.
    """
    instructions, place = request.instructions, (context.run_id, context.node_id)
    if instructions.phase != "explore" or privacy is None:
        yield
        return
    with _LOCK:
        if instructions.payload != "units":
            raise WireError(
                f"this node's reports are noised ({privacy}), but the server asks for "
                f"{instructions.payload!r}; take a method that asks for 'units'."
            )
        again = "and a second one would cost its privacy again."
        if wire.keys.RELEASED in context.state:
            raise WireError(
                f"this node's noised report ({privacy}) is out already, {again}"
            )
        if place in _EXPLORING:
            raise WireError(
                f"this node's noised report ({privacy}) is being made for another "
                f"request, {again}"
            )
        _EXPLORING.add(place)
    try:
        yield
    finally:
        _EXPLORING.discard(place)


def answer(
    request: wire.Request,
    start: Arrays,
    trained: Arrays,
    flatten: Callable[[Arrays, Plan], NDArray[Any]],
    privacy: ReportPrivacy | None,
    state: RecordDict,
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Make the array that a node sends, and what is said of it.

    To train, or inside :func:`one_release` to explore. ``start`` and ``trained`` are a
    model's arrays before and after; ``flatten`` brings them and a plan, dense or small,
    to ``(plan.num_values,)``. ``state`` is ``context.state``: it keeps what rounding
    left, and that a noised report is out.
    """
    instructions = request.instructions
    plan = instructions.reply_plan
    if instructions.phase == "train":
        return encode_trained(request, flatten(trained, plan), state), {}
    flat = flatten(start, plan), flatten(trained, plan)
    values, scale = wire.encode_report(*flat, plan, instructions.payload, privacy)
    metadata = wire.seal_report(values, scale)
    if privacy is not None:
        metadata[wire.keys.PRIVACY] = str(privacy)
        state[wire.keys.RELEASED] = ConfigRecord({wire.keys.PRIVACY: str(privacy)})
    return values, metadata


def encode_trained(
    request: wire.Request, trained: NDArray[Any], state: RecordDict
) -> NDArray[Any]:
    """Make the array that a node sends of trained ``(reply_plan.num_values,)``.

    In 16 and 8 bits it holds the change. What 8 bits took from it stays in the node's
    state for the next time, under the names of run and plan.
    """
    instructions = request.instructions
    encoding, plan = instructions.reply_encoding, instructions.reply_plan
    if encoding.dtype == "float32":
        return trained
    update = trained - instructions.start
    name = (request.run + instructions.digest).hex()
    kept = wire.records_of(state, ArrayRecord).get(wire.keys.RESIDUAL, ArrayRecord())
    left = wire.from_arrayrecord(kept).get(name)
    # Rounding leaves less than a hundredth of the largest change, so a residual above
    # this round's change is of training that diverged, and is dropped.
    if left is not None and (
        left.shape != update.shape or largest(left) > largest(update)
    ):
        left = None
    data, residual = encoding.encode_update(update, left, plan)
    state.pop(wire.keys.RESIDUAL, None)
    if residual is not None:
        state[wire.keys.RESIDUAL] = wire.to_arrayrecord({name: residual})
    return data


def warn_if_unmoved(request: wire.Request, start: Arrays, trained: Arrays) -> None:
    """Warn if training left every weight as it came: often a copy was trained.

    Exploring needs no warning: a report of nothing is refused.
    """
    instructions = request.instructions
    weights = [t.name for t in instructions.plan.layout.tensors if t.trainable]
    if instructions.phase == "train" and all(
        np.array_equal(start[name], trained[name]) for name in weights
    ):
        warnings.warn(
            "no weight moved in training: is it a copy that is trained, or the "
            "learning rate 0? Train the model that was given, in place, and return it.",
            AutoFlipWarning,
            stacklevel=2,
        )
