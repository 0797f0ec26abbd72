"""Outliers of a round: nodes whose values changed much farther than the others' did.

Parameters count together, and a node whose parameters are an outlier is refused. Each
buffer counts by itself, and one that is an outlier is put back to its limit while the
node's training counts: a single odd example moves a running variance a hundredfold.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from logging import INFO, getLogger
from math import nan, prod, sqrt
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from ... import wire
from ...graph.layout import TensorSpec
from ...graph.pack import is_variance, split_values
from ...graph.plan import Plan
from ..hosts import check_metrics
from .exchange import Answer

LOGGER = getLogger("flwr")

FACTOR = 10.0
"""A limit is so many times the median of the round's changes.

Among fifty nodes with 10 to 10,000 examples, honest ones stay within twice the median
(``examples.benchmarks.skew``); of four nodes with two classes each and a few examples
one moved nine times as far as the median."""

LEAST = 0.1
"""In units: no limit is lower. Late in a run most nodes hardly move."""

MOST_PARAMETERS, MOST_BUFFERS = 3.0, 30.0
"""In units: no number of examples, which nobody can check, lifts a limit above this."""

_EPSILON = 1e-5
"""What normalisations add to a variance."""


@dataclass(frozen=True)
class Change:
    """How far a node moved what it was given, in units of :attr:`Start.units`.

    ``examples`` is on how many it trained, as it says; ``parameters`` of all together,
    0 where it did not train. ``buffers`` by name: of a counter of batches its growth
    for ten examples; NaN where the value cannot be, such as a variance below 0 or a
    counter that went back.
    """

    examples: float
    parameters: float
    buffers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """What nodes were given: ``(plan.num_values,)`` float32, finite."""

    values: NDArray[Any]
    plan: Plan

    @cached_property
    def units(self) -> dict[str, float]:
        """Sizes that changes are compared with, by buffer; ``""`` for parameters.

        The root mean square of parameters, or of freshly initialised ones if that is
        larger. Of a layer's running mean its standard deviation, of its running
        variance the variance, both averaged over the channels: one that is nearly dead
        has no scale of its own. Of other buffers their root mean square.
        """
        squares, buffers = 0.0, {}
        for spec, part, _ in self._parts(self.values):
            if spec.trainable:
                squares += _squares(part)
            else:
                buffers[spec.name] = part
        size = sqrt(squares / max(1, self.plan.num_parameters))
        units = {"": max(size, _initial_size(self.plan))}
        for name, part in buffers.items():
            stem, dot, kind = name.rpartition(".")
            variances = buffers.get(f"{stem}{dot}running_var")
            if kind in ("running_mean", "running_var") and variances is not None:
                usual = float(np.mean(variances, dtype=np.float64)) + _EPSILON
                units[name] = sqrt(usual) if kind == "running_mean" else usual
            else:
                units[name] = max(sqrt(_squares(part) / part.size), LEAST)
        return units

    def measure(self, values: NDArray[Any], examples: float) -> Change:
        """Measure what a node made of it: ``(plan.num_values,)`` float32, finite."""
        squares, buffers = 0.0, {}
        for spec, part, given in self._parts(values):
            change = part - given
            if spec.trainable:
                squares += _squares(change)
            elif _is_counter(spec.name):
                back = change.min() < -0.5  # less is rounding
                grown = LEAST * float(change.max()) / max(1.0, examples)
                buffers[spec.name] = nan if back else grown
            elif is_variance(spec) and part.min() < 0:
                buffers[spec.name] = nan
            else:
                size = sqrt(_squares(change) / part.size)
                buffers[spec.name] = size / self.units[spec.name]
        return replace(self.measure_norm(sqrt(squares), examples), buffers=buffers)

    def measure_norm(self, norm: float, examples: float) -> Change:
        """Measure an update of which only the L2 norm over parameters is known."""
        size = norm / sqrt(max(1, self.plan.num_parameters))
        return Change(examples, size / self.units[""])

    def put_back(
        self, values: NDArray[Any], ratios: Mapping[str, float]
    ) -> NDArray[np.float32]:
        """Copy a node's values; of some tensors' changes only this ratio is left."""
        copy = np.array(values, np.float32)
        for spec, part, given in self._parts(copy):
            if spec.name in ratios:
                part[:] = given + np.float32(ratios[spec.name]) * (part - given)
        return copy

    def _parts(
        self, values: NDArray[Any]
    ) -> Iterator[tuple[TensorSpec, NDArray[Any], NDArray[Any]]]:
        """Give each tensor's part of values and of what was given; none is empty."""
        given = split_values(self.values, self.plan)
        pairs = zip(split_values(values, self.plan), given, strict=True)
        return ((spec, part, start) for (spec, part), (_, start) in pairs if part.size)


def measuring(
    inner: Strategy,
) -> Callable[[wire.Reply, wire.Instructions], Change]:
    """Give what measures a round's replies, most of which share their instructions.

    It raises ``WireError`` if a reply lacks a metric that the strategy needs.
    """
    starts: dict[int, Start] = {}

    def measure(reply: wire.Reply, instructions: wire.Instructions) -> Change:
        check_metrics(inner, reply)
        if (key := id(instructions)) not in starts:
            starts[key] = Start(instructions.start, instructions.reply_plan)
        examples = reply.metadata.get(wire.keys.EXAMPLES) or reply.num_examples
        return starts[key].measure(reply.values, examples)

    return measure


_DIVERGED = "If training diverged, lower the learning rate or clip gradients."


def refuse_outliers(
    changes: Sequence[Change | None], what: str = "values", way_out: str = _DIVERGED
) -> dict[int, str]:
    """Say whose parameters moved farther than training moves them, and why.

    Gives places in ``changes``, of which one is None where nothing can be measured.
    None is refused where fewer than three nodes trained at all: there is nobody to
    compare with. ``way_out`` says what to do where an honest node is refused.

    >>> list(refuse_outliers([Change(1, moved) for moved in (0.5, 0.5, 0.5, 6)]))
    [3]
    """
    known = {i: change for i, change in enumerate(changes) if change is not None}
    moved = np.array([[change.parameters] for change in known.values()])
    limits = _limits([*known.values()], moved, LEAST, MOST_PARAMETERS)
    usual = np.median(moved[moved > 0]) if moved.any() else 0.0
    rows = zip(known.items(), moved.ravel(), limits.ravel(), strict=True)
    return {
        place: f"{what}: its parameters moved by {size:.3g} times their size; the "
        f"round's median is {usual:.3g}, up to {limit:.3g} is taken for "
        f"{change.examples:g} examples. {way_out}"
        for (place, change), size, limit in rows
        if size > limit
    }


def ratios_of_buffers(changes: Sequence[Change]) -> list[dict[str, float]]:
    """Give by node what counts of changes of buffers that are outliers or cannot be.

    Buffer's name to the ratio of its change that counts, below 1; others count whole.
    All nodes have the same buffers.
    """
    moved = np.array([[*change.buffers.values()] for change in changes])
    if not moved.size:
        return [{} for _ in changes]
    names = list(changes[0].buffers)
    counters = np.array([_is_counter(name) for name in names])
    known = np.nan_to_num(moved)
    farthest = np.where(counters, 0, known)[_trained(changes)].max(axis=1)
    usual = max(LEAST, np.median(farthest)) if farthest.size else LEAST
    # Counters may grow by a batch for each example, whoever trained.
    least, most = np.where(counters, LEAST, usual), np.where(counters, 0, MOST_BUFFERS)
    limits = _limits(changes, known, least, most)
    ratios = np.divide(limits, moved, out=np.ones_like(moved), where=known > limits)
    ratios[np.isnan(moved)] = 0
    return [
        {name: ratio for name, ratio in zip(names, row, strict=True) if ratio < 1}
        for row in ratios.tolist()
    ]


def put_back_buffers(answers: Sequence[Answer[Change]]) -> list[Answer[Change]]:
    """Put nodes' buffers back to their limits, in messages, too; training counts."""
    after = list(answers)
    for place, ratios in enumerate(ratios_of_buffers([a.made for a in answers])):
        if not ratios:
            continue
        answer = answers[place]
        start = Start(answer.instructions.start, answer.instructions.reply_plan)
        values = start.put_back(answer.reply.values, ratios)
        wire.replace_values_inplace(answer.message, values)
        after[place] = replace(answer, reply=replace(answer.reply, values=values))
        node, names = answer.message.metadata.src_node_id, ", ".join(sorted(ratios))
        LOGGER.log(INFO, "\t> buffers of node %s are put back: %s", node, names)
    return after


def _limits(
    changes: Sequence[Change], moved: NDArray[np.float64], least: Any, most: Any
) -> NDArray[np.float64]:
    """Give each node's limits, ``(num_nodes, k)`` as ``moved``: inf if there are none.

    A node that trained on more examples than others may have moved farther, in
    proportion at most.
    """
    trained = _trained(changes)
    if trained.sum() < 3:
        return np.full(moved.shape, np.inf)
    examples = np.array([max(1.0, change.examples) for change in changes])
    others = moved[trained]
    usual = np.maximum(FACTOR * np.median(others, axis=0), least)
    limits, most = np.tile(usual, (len(moved), 1)), np.broadcast_to(most, usual.shape)
    for node, column in np.argwhere(moved > limits):
        more = np.maximum(1.0, examples[node] / examples[trained])
        scaled = FACTOR * np.median(others[:, column] * more)
        limits[node, column] = max(usual[column], min(scaled, most[column]))
    return limits


def _trained(changes: Sequence[Change]) -> NDArray[np.bool_]:
    return np.array([change.parameters > 0 for change in changes], np.bool_)


def _squares(values: NDArray[np.floating]) -> float:
    """Sum squares, in 64 bits where 32 do not hold them."""
    found = float(np.vdot(values, values))
    wide = np.isfinite(found)
    return found if wide else float(np.square(values, dtype=np.float64).sum())


def _initial_size(plan: Plan) -> float:
    """Give the root mean square of fresh weights: some parameters begin as zeros."""
    shapes = [plan.small_shape(t.name) for t in plan.layout.tensors if t.trainable]
    rows = sum(shape[0] for shape in shapes if len(shape) > 1)
    return sqrt(rows / (3 * max(1, sum(map(prod, shapes)))))


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"
