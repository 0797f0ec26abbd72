"""A round's replies -> the next global model, through the inner strategy."""

from collections.abc import Sequence

import numpy as np
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from . import wire
from .core.aggregate import fill, settle
from .core.layout import Arrays
from .core.plan import Plan
from .core.values import expand
from .exchange import Answer
from .hosts import only_averages, update_inplace, weight_key

Aggregated = tuple[ArrayRecord | None, MetricRecord | None]


def aggregate(
    inner: Strategy,
    server_round: int,
    answers: Sequence[Answer[None]],
    weights: Arrays,
    *,
    zero: bool,
) -> Aggregated:
    """Let the inner strategy aggregate, and keep what nobody trained.

    Parameters
    ----------
    inner : Strategy
    server_round : int
    answers : sequence of Answer
        At least one; their messages' contents are replaced.
    weights : mapping of str to ndarray
        Dense global arrays that the round started from.
    zero : bool
        Parameters that nobody trained become 0 instead.

    Returns
    -------
    arrays : ArrayRecord or None
        Dense, in the model's dtypes; None if the inner strategy gave none.
    metrics : MetricRecord or None

    Notes
    -----
    A strategy that only averages gets the kept values as they came, one flat array a
    node: a mean does not care what its numbers mean. All others get dense models.
    """
    plans = [answer.orders.reply_plan for answer in answers]
    alike = all(plan is plans[0] for plan in plans)
    if alike and only_averages(inner):
        return _average(inner, server_round, answers, weights, zero)
    if alike:  # one dense copy at a time, until it is serialised
        for answer in answers:
            _give_dense(inner, answer, expand(weights, answer.reply.values, plans[0]))
    else:
        models = [
            expand(weights, answer.reply.values, plan)
            for answer, plan in zip(answers, plans, strict=True)
        ]
        counts = [answer.reply.num_examples for answer in answers]
        for answer, full in zip(answers, fill(models, plans, counts), strict=True):
            _give_dense(inner, answer, full)
    messages = [answer.message for answer in answers]
    aggregated, metrics = inner.aggregate_train(server_round, messages)
    if aggregated is not None:
        mean = wire.from_arrayrecord(aggregated)
        update_inplace(aggregated, settle(mean, weights, plans, zero=zero))
    return aggregated, metrics


def _give_dense(inner: Strategy, answer: Answer[None], full: Arrays) -> None:
    record = wire.to_arrayrecord(full)
    wire.inner_reply(answer.message, record, answer.reply, weight_key(inner))


def _average(
    inner: Strategy,
    server_round: int,
    answers: Sequence[Answer[None]],
    weights: Arrays,
    zero: bool,
) -> Aggregated:
    plan = answers[0].orders.reply_plan
    for answer in answers:
        record = wire.kept_values(answer.message, answer.reply, answer.orders)
        wire.inner_reply(answer.message, record, answer.reply, weight_key(inner))
    messages = [answer.message for answer in answers]
    aggregated, metrics = inner.aggregate_train(server_round, messages)
    if aggregated is None:
        return None, metrics
    base = _without_parameters(weights, plan) if zero else weights
    dense = expand(base, wire.single_array(aggregated), plan)
    return wire.to_arrayrecord(dense), metrics


def _without_parameters(weights: Arrays, plan: Plan) -> dict[str, NDArray[np.generic]]:
    return {
        t.name: np.zeros_like(weights[t.name]) if t.trainable else weights[t.name]
        for t in plan.layout.tensors
    }
