"""How far a node moved what it was given, and which nodes moved it too far.

What is compared is the change of a round, never the size of what came of it. Parameters
count together, in units of their own size. Running means and variances are a layer's
own, in units of its standard deviation and variance: wrong ones change what a network
answers as much as wrong weights do. Counters say nothing of size at all. One odd
example moves a variance a hundredfold, and local noise makes one negative, so a buffer
that was moved too far is taken back to its limit, and one that cannot be to what the
node was given (:func:`pull_back`). Only parameters' change is a reason to refuse one.

A node that trained on more examples may have moved farther, but not more than in
proportion. Since nobody can check what it says of their number, no number lets it move
farther than a few times what it was given, where others hardly move it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..graph.layout import TensorSpec
from ..graph.pack import is_variance, split_values
from ..graph.plan import Plan

FACTOR = 10.0
"""So many times the median of what nodes moved, each as if it had as many examples.

Among fifty nodes with 10 to 10,000 examples, honest ones stay within twice the median
(``examples.benchmarks.skew``); of four nodes with two classes each and a few examples
one moved nine times as far as the median."""

FARTHEST_WEIGHTS, FARTHEST_BUFFERS = 3.0, 30.0
"""In units: as far as a number of examples lets a node move beyond the others."""

LITTLE = 0.1
"""In units: as far as anybody may move, whatever the others do.

Late in a run most nodes hardly move, but one whose data are hard still does."""

WEIGHTS = ""
"""Stands for all parameters among names of tensors."""

_MEAN, _VARIANCE, _COUNTER = "running_mean", "running_var", "num_batches_tracked"
_EPSILON = 1e-5
"""What normalisations add to a variance."""

_PART = 1 << 16
"""Values that are compared at a time: they stay in a processor's cache."""


@dataclass(frozen=True)
class Drift:
    """How far a node moved what it was given.

    Parameters
    ----------
    examples : float
        That it trained on, as it says.
    moved : mapping of str to float
        Tensor name to how far, in units; :data:`WEIGHTS` for all parameters.
    impossible : frozenset of str (default: none)
        Variances below 0 and counters that went back, which moved by 0.
    """

    examples: float
    moved: Mapping[str, float]
    impossible: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TooFar:
    """What a node moved too far, in units.

    Parameters
    ----------
    name : str
        See :class:`Drift`.
    moved, median, limit : float
        How far; how far half of the nodes; how far this one might.
    """

    name: str
    moved: float
    median: float
    limit: float


def units_of(before: NDArray[np.floating], plan: Plan) -> dict[str, float]:
    """Give the sizes that changes are compared with.

    Parameters
    ----------
    before : ndarray
        ``(plan.num_values,)``: what nodes are given.
    plan : Plan

    Returns
    -------
    dict of str to float
        Buffer's name to its unit, and :data:`WEIGHTS` to that of all parameters.
    """
    parts = {spec.name: (spec, part) for spec, part in split_values(before, plan)}
    squares = sum(_squares(part) for spec, part in parts.values() if spec.trainable)
    size = np.sqrt(squares / max(1, plan.num_parameters))
    units = {WEIGHTS: max(float(size), _usual_size(plan))}
    for name, (spec, part) in parts.items():
        stem, dot, kind = name.rpartition(".")
        variance = f"{stem}{dot}{_VARIANCE}"
        if spec.trainable or not part.size:
            continue
        if kind in (_MEAN, _VARIANCE) and variance in parts:
            # Of the layer: a channel that is nearly dead has none of its own.
            usual = float(np.mean(parts[variance][1], dtype=np.float64)) + _EPSILON
            units[name] = float(np.sqrt(usual)) if kind == _MEAN else usual
        else:
            units[name] = max(float(np.sqrt(_squares(part) / part.size)), 0.1)
    return units


def measure_drift(
    values: NDArray[np.floating],
    before: NDArray[np.floating],
    units: Mapping[str, float],
    plan: Plan,
    examples: float,
) -> Drift:
    """Measure what a node made of what it was given, a part at a time.

    Parameters
    ----------
    values, before : ndarray
        ``(plan.num_values,)``, finite.
    units : mapping of str to float
        Of ``before``; see :func:`units_of`.
    plan : Plan
    examples : float
        At least 1 where it trained.

    Returns
    -------
    Drift
    """
    moved, squares, impossible = dict[str, float](), 0.0, set[str]()
    parts = zip(split_values(values, plan), split_values(before, plan), strict=True)
    for (spec, part), (_, start) in parts:
        if spec.trainable:
            squares += _squares(part, start)
        elif part.size and _is_impossible(spec, part, start):
            impossible.add(spec.name)
            moved[spec.name] = 0.0
        elif part.size and _is_counter(spec.name):
            grown = float((part.astype(np.float64) - start).max())
            moved[spec.name] = max(0.0, grown - _rounding(part, start)) / max(
                1.0, examples
            )
        elif part.size:
            distance = float(np.sqrt(_squares(part, start) / part.size))
            moved[spec.name] = distance / units[spec.name]
    weights = drift_of_norm(float(np.sqrt(squares)), units, plan, examples)
    return Drift(examples, {**weights.moved, **moved}, frozenset(impossible))


def drift_of_norm(
    norm: float, units: Mapping[str, float], plan: Plan, examples: float
) -> Drift:
    """Give the drift of a node of which only the length of its update is known.

    Parameters
    ----------
    norm : float
        L2 norm over parameters.
    units : mapping of str to float
        See :func:`units_of`.
    plan : Plan
    examples : float

    Returns
    -------
    Drift
    """
    distance = norm / float(np.sqrt(max(1, plan.num_parameters)))
    return Drift(examples, {WEIGHTS: distance / units[WEIGHTS]})


def _usual_size(plan: Plan) -> float:
    """Give the size of freshly initialised weights: some begin as zeros."""
    shapes = [plan.small_shape(t.name) for t in plan.layout.tensors if t.trainable]
    rows = sum(shape[0] for shape in shapes if len(shape) > 1)
    return float(np.sqrt(rows / (3 * max(1, sum(map(prod, shapes))))))


def _squares(
    values: NDArray[np.floating], other: NDArray[np.floating] | None = None
) -> float:
    """Sum the squares of values, or of their differences, without a copy of them."""
    total, buffer = 0.0, np.empty(min(_PART, values.size), np.float32)
    for first in range(0, values.size, _PART):
        part = values[first : first + _PART]
        if other is not None or part.dtype != np.float32:
            out = buffer[: part.size]
            minus = 0 if other is None else other[first : first + _PART]
            part = np.subtract(part, minus, out=out, dtype=np.float32)
        found = float(np.vdot(part, part))
        if not np.isfinite(found):  # 32 bits end at 2^128
            wide = part.astype(np.float64)
            found = float(np.vdot(wide, wide))
        total += found
    return total


def _is_impossible(
    spec: TensorSpec, part: NDArray[np.floating], start: NDArray[np.floating]
) -> bool:
    """Tell a variance below 0, and a counter that went back."""
    if _is_counter(spec.name):
        back = float((start - part.astype(np.float64)).max())
        return back > _rounding(part, start)
    return is_variance(spec) and float(part.min()) < 0


def _rounding(part: NDArray[np.floating], start: NDArray[np.floating]) -> float:
    """Give how far a counter may be off by its dtype on the wire."""
    return float(np.abs(start).max()) * float(np.finfo(part.dtype).eps)


def find_too_far(drifts: Sequence[Drift]) -> dict[int, tuple[TooFar, ...]]:
    """Find the nodes that moved something farther than training does.

    Parameters
    ----------
    drifts : sequence of Drift
        Of a round's nodes.

    Returns
    -------
    dict of int to tuple of TooFar
        Place to all that it moved beyond its limit. Empty where fewer than three nodes
        trained at all: there is nobody to compare with.

    Examples
    --------
    >>> find_too_far([Drift(1, {"": moved}) for moved in (0.25, 0.25, 0.25, 4.0)])
    {3: (TooFar(name='', moved=4.0, median=0.25, limit=2.5),)}
    """
    trained = [drift for drift in drifts if drift.moved[WEIGHTS] > 0]
    if len(trained) < 3:
        return {}
    examples = np.array([max(1.0, drift.examples) for drift in trained])
    usual = float(np.median([_farthest_buffer(drift) for drift in trained]))
    found: dict[int, tuple[TooFar, ...]] = {}
    for name in drifts[0].moved:
        others = np.array([drift.moved[name] for drift in trained])
        median = float(np.median(others))
        farthest = FARTHEST_BUFFERS if name else FARTHEST_WEIGHTS
        for place, drift in enumerate(drifts):
            moved = drift.moved[name]
            limit = max(FACTOR * median, _little(name, usual))
            if moved > limit and not _is_counter(name):
                more = np.maximum(1.0, drift.examples / examples)
                scaled = FACTOR * float(np.median(others * more))
                limit = max(limit, min(scaled, farthest))
            if moved > limit:
                far = TooFar(name, moved, median, limit)
                found[place] = (*found.get(place, ()), far)
    return found


def shares_of_buffers(drifts: Sequence[Drift]) -> list[dict[str, float]]:
    """Give what may stay of changes of buffers that are too far or impossible.

    Parameters
    ----------
    drifts : sequence of Drift
        Of a round's nodes.

    Returns
    -------
    list of dict of str to float
        For each, tensor name to the share of its change that stays; others stay whole.
    """
    found = find_too_far(drifts)
    return [
        {far.name: far.limit / far.moved for far in found.get(i, ()) if far.name}
        | dict.fromkeys(drift.impossible, 0.0)
        for i, drift in enumerate(drifts)
    ]


def pull_back(
    values: NDArray[np.floating],
    before: NDArray[np.floating],
    shares: Mapping[str, float],
    plan: Plan,
) -> NDArray[np.float32]:
    """Take back a part of what a node made of some tensors.

    Parameters
    ----------
    values, before : ndarray
        ``(plan.num_values,)``; not changed.
    shares : mapping of str to float
        Tensor name to the share of its change that stays.
    plan : Plan

    Returns
    -------
    ndarray
        ``(plan.num_values,)`` float32.
    """
    held = np.array(values, np.float32)
    parts = zip(split_values(held, plan), split_values(before, plan), strict=True)
    for (spec, part), (_, start) in parts:
        if spec.name in shares:
            part[:] = start + np.float32(shares[spec.name]) * (part - start)
    return held


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == _COUNTER


def _farthest_buffer(drift: Drift) -> float:
    """Give how far a node moved the buffer that it moved most."""
    named = drift.moved.items()
    return max(
        (far for name, far in named if name != WEIGHTS and not _is_counter(name)),
        default=0.0,
    )


def _little(name: str, usual: float) -> float:
    """Give how far anybody may move a tensor, and the usual farthest of all buffers."""
    if _is_counter(name):  # one batch holds one example at least
        return 1.0
    return LITTLE if name == WEIGHTS else max(LITTLE, usual)
