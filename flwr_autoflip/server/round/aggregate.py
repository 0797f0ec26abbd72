"""A round's replies -> the next global model, averaged by the inner strategy.

Nodes may train different parts of a model. Before averaging, what a node did not train
is filled with the average of those who did; afterwards, what no node trained gets its
last value back.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from ... import wire
from ...errors import AutoFlipError
from ...graph.layout import Arrays, Layout
from ...graph.pack import LARGEST, expand, is_variance, unpack_small
from ...graph.plan import Plan
from ..hosts import only_averages, update_inplace, weight_key
from .exchange import Answer

Aggregated = tuple[ArrayRecord | None, MetricRecord | None]
RecordOf = Callable[[Answer[Any]], ArrayRecord]
"""What is averaged of an answer."""


def aggregate(
    inner: Strategy,
    server_round: int,
    answers: list[Answer[Any]],
    weights: Arrays,
    zero: bool,
) -> Aggregated:
    """Let the inner strategy aggregate a round's replies to the dense ``weights``.

    A strategy that only averages gets each node's values in one flat array, as they
    came; any other gets dense models. Answers are emptied, so that no reply is in
    memory twice. With ``zero`` parameters that nobody trained become 0
    (arXiv:2405.10271v3, Algorithm 1, line 25) instead of staying as they were.

    Gives dense arrays in the model's dtypes, or None if the inner strategy gave none,
    and its metrics. Raises ``AutoFlipError`` if the average holds NaN or values too
    large to be sent.
    """
    plans = [answer.instructions.reply_plan for answer in answers]
    flat = only_averages(inner) and all(plan is plans[0] for plan in plans)
    record_of = _flat_record if flat else _dense_record(answers, plans, weights)
    messages = _messages(answers, record_of, weight_key(inner))
    aggregated, metrics = inner.aggregate_train(server_round, messages)
    if aggregated is None:
        return None, metrics
    if flat:
        last = untrained_values(weights, plans[0].layout, zero)
        dense = expand(last, wire.single_array(aggregated), plans[0])
        return wire.to_arrayrecord(dense), metrics
    merged = merge(wire.from_arrayrecord(aggregated), weights, plans, zero=zero)
    try:
        check_usable(merged)
    except AutoFlipError:  # FedAvgM takes the record for the global model
        update_inplace(aggregated, dict(weights))
        raise
    update_inplace(aggregated, merged)
    return aggregated, metrics


def _messages(
    answers: list[Answer[Any]], record_of: RecordOf, key: str
) -> list[Message]:
    """Give messages for the inner strategy; each answer is dropped then."""
    messages = []
    answers.reverse()
    while answers:
        answer = answers.pop()
        wire.inner_reply(answer.message, record_of(answer), answer.reply, key)
        messages.append(answer.message)
    return messages


def _flat_record(answer: Answer[Any]) -> ArrayRecord:
    return wire.kept_values(answer.message, answer.reply, answer.instructions)


def _dense_record(
    answers: Sequence[Answer[Any]], plans: Sequence[Plan], weights: Arrays
) -> RecordOf:
    """Make dense models, with others' averages where a node did not train."""
    values = [answer.reply.values for answer in answers]
    counts = [answer.reply.num_examples for answer in answers]
    base = fill_values(weights, values, plans, counts)
    buffer = {name: np.empty_like(array) for name, array in base.items()}

    def record_of(answer: Answer[Any]) -> ArrayRecord:
        expand(base, answer.reply.values, answer.instructions.reply_plan, buffer)
        return wire.to_arrayrecord(buffer)

    return record_of


def fill_values(
    base: Arrays,
    values: Sequence[NDArray[Any]],
    plans: Sequence[Plan],
    weights: Sequence[float],
) -> dict[str, NDArray[Any]]:
    """Average every coordinate over the nodes that trained it, weighted.

    Put where a node trained nothing, this makes the weighted mean of dense models the
    mean over those who trained: HeteroFL's average (arXiv:2010.01264).

    ``values`` are ``(plan.num_values,)`` of each node's plan. Gives dense arrays, the
    base's where nobody trained, or everybody did, in its dtypes; but integers that some
    node lacks are float64, as their mean is no integer. Takes three dense arrays of the
    largest tensor in float64, whatever the number of nodes.
    """
    filled = dict(base)
    if all(plan is plans[0] for plan in plans):
        return filled
    models = [unpack_small(v, plan) for v, plan in zip(values, plans, strict=True)]
    for spec in plans[0].layout.distinct:
        name = spec.name
        if all(plan.count(name) == spec.size for plan in plans):
            continue
        total, sums = np.zeros(spec.shape), np.zeros(spec.shape)
        for model, plan, weight in zip(models, plans, weights, strict=True):
            plan.add(name, total, weight * plan.small_mask.get(name, np.True_))
            plan.add(name, sums, weight * model[name])  # 0 at pruned single weights
        trained = total > 0
        np.divide(sums, total, out=sums, where=trained)
        real = spec.dtype if np.dtype(spec.dtype).kind == "f" else np.float64
        filled[name] = np.where(trained, sums.astype(real), base[name])
    return filled


def merge(
    average: Arrays, last: Arrays, plans: Sequence[Plan], *, zero: bool = False
) -> dict[str, NDArray[Any]]:
    """Take the dense average where a node trained, the last global values elsewhere.

    What the inner optimizer did elsewhere (momentum, noise) has no effect. Gives the
    layout's dtypes; ``zero`` is as in :func:`aggregate`.
    """
    layout, different = plans[0].layout, {id(plan): plan for plan in plans}.values()
    merged = untrained_values(last, layout, zero)
    for spec in layout.distinct:
        trained = np.logical_or.reduce([p.dense_mask(spec.name) for p in different])
        merged[spec.name] = np.where(trained, average[spec.name], merged[spec.name])
    return cast_to_layout(merged, layout)


def untrained_values(
    weights: Arrays, layout: Layout, zero: bool
) -> dict[str, NDArray[Any]]:
    """Give what stays where nobody trained: with ``zero`` only buffers do."""
    return {
        t.name: np.zeros_like(weights[t.name])
        if zero and t.trainable
        else weights[t.name]
        for t in layout.tensors
    }


def cast_to_layout(arrays: Arrays, layout: Layout) -> dict[str, NDArray[Any]]:
    """Give arrays the model's dtypes; integers are rounded.

    Variances are at least 0: an optimizer's momentum on the server may carry them past.
    """
    cast = {}
    for spec in layout.distinct:
        array = np.asarray(arrays[spec.name])
        array = np.maximum(array, 0) if is_variance(spec) else array
        if np.dtype(spec.dtype).kind in "iu" and array.dtype.kind == "f":
            array = np.rint(array)
        cast[spec.name] = array.astype(spec.dtype)
    return layout.tie(cast)


def check_usable(arrays: Arrays) -> None:
    """Raise ``AutoFlipError`` unless a model can be sent, as it must next."""
    for name, array in arrays.items():
        if array.dtype.kind != "f" or not array.size:
            continue
        low, high = float(array.min()), float(array.max())
        if not max(-low, high) <= LARGEST or np.isnan(low):
            raise AutoFlipError(
                f"the average of {name!r} is no model's: its values lie in "
                f"[{low:.3g}, {high:.3g}]."
            )
