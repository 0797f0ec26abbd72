"""A round's replies -> the next global model, through the inner strategy."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from logging import INFO, getLogger

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from .. import wire
from ..errors import AutoFlipError, WireError
from ..graph.layout import Arrays
from ..graph.pack import expand
from ..graph.plan import Plan
from .drift import (
    WEIGHTS,
    Drift,
    find_too_far,
    measure_drift,
    pull_back,
    shares_of_buffers,
    units_of,
)
from .exchange import Answer
from .hosts import needed_metrics, only_averages, update_inplace, weight_key
from .merge import check_usable, settle, stand_in

LOGGER = getLogger("flwr")

Aggregated = tuple[ArrayRecord | None, MetricRecord | None]
NOTHING: Aggregated = None, None
"""Of a round that is lost."""


@dataclass
class Meter:
    """Measures what a round's nodes trained, for :func:`refuse_diverged`.

    Parameters
    ----------
    inner : Strategy
    """

    inner: Strategy
    _units: dict[int, tuple[wire.Instructions, dict[str, float]]] = field(
        default_factory=dict
    )

    def __call__(self, reply: wire.Reply, instructions: wire.Instructions) -> Drift:
        """Measure a reply.

        Raises
        ------
        WireError
            If a metric without which the inner strategy cannot aggregate is no number.
        """
        for name in needed_metrics(self.inner):
            if not isinstance(reply.metrics.get(name), (int, float)):
                raise WireError(
                    f"the inner strategy needs the metric {name!r} of every node, a "
                    f"finite number. {reply.unusable}"
                )
        start, plan = instructions.start, instructions.reply_plan
        if id(instructions) not in self._units:  # most nodes are given the same
            self._units[id(instructions)] = instructions, units_of(start, plan)
        units = self._units[id(instructions)][1]
        examples = reply.metadata.get(wire.KEY_EXAMPLES) or reply.num_examples
        return measure_drift(reply.values, start, units, plan, examples)


def refuse_diverged(drifts: list[Drift]) -> dict[int, str]:
    """Say whose training went astray, which would end everybody's: place to reason.

    Parameters
    ----------
    drifts : list of Drift
        Of the round's replies.

    Returns
    -------
    dict of int to str
    """
    return {
        place: f"values: its parameters moved by {far.moved:.3g} times their size; the "
        f"round's median is {far.median:.3g}, up to {far.limit:.3g} is taken for "
        f"{drifts[place].examples} examples. If training diverged, lower the learning "
        "rate or clip gradients."
        for place, found in find_too_far(drifts).items()
        for far in found
        if far.name == WEIGHTS
    }


def hold_buffers(answers: list[Answer[Drift]]) -> list[Answer[Drift]]:
    """Take back what nodes moved buffers farther than others did; training counts.

    Parameters
    ----------
    answers : list of Answer
        Of the nodes that count. Messages' values are replaced where they are changed.

    Returns
    -------
    list of Answer
    """
    held = list(answers)
    for place, shares in enumerate(shares_of_buffers([a.made for a in answers])):
        if not shares:
            continue
        answer = answers[place]
        start, plan = (
            answer.instructions.start,
            answer.instructions.reply_plan,
        )
        values = pull_back(answer.reply.values, start, shares, plan)
        wire.replace_values_inplace(answer.message, values)
        held[place] = replace(answer, reply=replace(answer.reply, values=values))
        node, names = answer.message.metadata.src_node_id, sorted(shares)
        text = "\t> node %s moved buffers to where they are not taken: %s"
        LOGGER.log(INFO, text, node, ", ".join(names))
    return held


def aggregate(
    inner: Strategy,
    server_round: int,
    answers: list[Answer[Drift]],
    weights: Arrays,
    zero: bool,
) -> Aggregated:
    """Let the inner strategy aggregate, and keep what nobody trained.

    Parameters
    ----------
    inner : Strategy
    server_round : int
    answers : list of Answer
        At least one. Emptied, and their messages' contents replaced: no reply is in
        memory twice.
    weights : mapping of str to ndarray
        Dense global arrays that the round started from.
    zero : bool
        Parameters that nobody trained become 0 instead.

    Returns
    -------
    arrays : ArrayRecord or None
        Dense, in the model's dtypes; None if the inner strategy gave none.
    metrics : MetricRecord or None

    Raises
    ------
    AutoFlipError
        If what comes out is no model that nodes could go on with.

    Notes
    -----
    A strategy that only averages gets the kept values as they came, one flat array a
    node: a mean does not care what its numbers mean. All others get dense models.
    """
    plans = [answer.instructions.reply_plan for answer in answers]
    compact = only_averages(inner) and all(plan is plans[0] for plan in plans)
    key = weight_key(inner)
    messages = _compact(answers, key) if compact else _dense(answers, key, weights)
    aggregated, metrics = inner.aggregate_train(server_round, messages)
    if aggregated is None:
        return None, metrics
    if compact:
        base = _without_parameters(weights, plans[0]) if zero else weights
        dense = expand(base, wire.single_array(aggregated), plans[0])
        return wire.to_arrayrecord(dense), metrics
    mean = wire.from_arrayrecord(aggregated)
    settled = settle(mean, weights, plans, zero=zero)
    try:
        check_usable(settled)
    except AutoFlipError:  # FedAvgM takes the record for the global model
        update_inplace(aggregated, dict(weights))
        raise
    update_inplace(aggregated, settled)
    return aggregated, metrics


def _compact(answers: list[Answer[Drift]], key: str) -> list[Message]:
    """Give messages of kept values, one flat array each."""
    messages = []
    for answer in _emptying(answers):
        record = wire.kept_values(answer.message, answer.reply, answer.instructions)
        wire.inner_reply(answer.message, record, answer.reply, key)
        messages.append(answer.message)
    return messages


def _dense(answers: list[Answer[Drift]], key: str, weights: Arrays) -> list[Message]:
    """Give messages of dense models, with others' averages where nodes trained not."""
    base = stand_in(
        weights,
        [answer.reply.values for answer in answers],
        [answer.instructions.reply_plan for answer in answers],
        [answer.reply.num_examples for answer in answers],
    )
    messages, buffer = [], {name: np.empty_like(array) for name, array in base.items()}
    for answer in _emptying(answers):
        expand(base, answer.reply.values, answer.instructions.reply_plan, buffer)
        record = wire.to_arrayrecord(buffer)
        wire.inner_reply(answer.message, record, answer.reply, key)
        messages.append(answer.message)
    return messages


def _emptying(answers: list[Answer[Drift]]) -> Iterator[Answer[Drift]]:
    answers.reverse()
    while answers:
        yield answers.pop()


def _without_parameters(weights: Arrays, plan: Plan) -> dict[str, NDArray[np.generic]]:
    return {
        t.name: np.zeros_like(weights[t.name]) if t.trainable else weights[t.name]
        for t in plan.layout.tensors
    }
