"""How much is kept, given scores: Eq. 11's threshold, and targets for what it costs.

Scores come as one array a group or tensor; larger means more important. Every rule
answers with boolean arrays of the same shapes, True = kept. Of equal scores the earlier
one is kept, so that they give the same plan everywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import AutoFlipError
from ..graph.layout import Arrays, Layout

Kept = dict[str, NDArray[np.bool_]]
Cost = Callable[[Kept], float]
"""Ratio, in (0, 1], of what a choice costs to the dense cost, of what can shrink."""

UnitCounts = Mapping[str, int]
"""Group name to how many of its units are kept."""


@dataclass(frozen=True)
class Absolute:
    """Keep what scores at least ``value`` (Eq. 11's T_p)."""

    value: float = 0.3


@dataclass(frozen=True)
class Quantile:
    """Prune the lowest ``ratio``, of each group (``"layer"``) or of all (``"global"``).

    The global form is the authors' code: what does not lie strictly above the
    quantile's value is pruned, ties included.
    """

    ratio: float = 0.3
    scope: Literal["layer", "global"] = "layer"


@dataclass(frozen=True)
class Compression:
    """Keep the largest even part of each group within 1/``factor`` of the parameters.

    Parameters of layers that cannot shrink, such as ignored ones, are not counted.
    """

    factor: float = 2.0


@dataclass(frozen=True)
class MacRatio:
    """Keep at most ``ratio`` of the MACs that can shrink.

    Those of layers without prunable units, such as ignored ones, come on top. Groups
    share the cut by what it saves, see :func:`allocate`; with an infinite ``exponent``
    all keep the same part of theirs, the largest that fits.
    """

    ratio: float = 0.25
    exponent: float = 1.0


@dataclass(frozen=True)
class Cumulative:
    """Of each group, keep the smallest set with ``ratio`` of the scores' sum."""

    ratio: float = 0.7


Rule = Absolute | Quantile | Compression | MacRatio | Cumulative
Threshold = Rule | UnitCounts
ThresholdLike = Threshold | float | str

_KINDS: Mapping[str, Callable[[float], Rule]] = {
    "macs": MacRatio,
    "even-macs": partial(MacRatio, exponent=np.inf),
    "cumulative": Cumulative,
    "quantile": Quantile,
    "global-quantile": partial(Quantile, scope="global"),
}
_FORMS = (
    "'macs:0.25', 'even-macs:0.25', '2x' (parameters), 'cumulative:0.7', "
    "0.3 (absolute T_p), 'quantile:0.3' or 'global-quantile:0.3'"
)


def parse_threshold(value: ThresholdLike) -> Threshold:
    """Turn a short form into a threshold and check its range.

    Parameters
    ----------
    value : Threshold, float, str or mapping of str to int
        ``"macs:0.25"``, ``"even-macs:0.25"``, ``"2x"``, ``"cumulative:0.7"``, a float
        for T_p, ``"quantile:0.3"``, ``"global-quantile:0.3"``, or units a group:
        ``"conv1=8,fc1=32"`` or a mapping.

    Raises
    ------
    AutoFlipError
        If it is none of these or out of its range.

    Examples
    --------
    >>> parse_threshold("2x")
    Compression(factor=2.0)
    """
    threshold = _parse_text(value) if isinstance(value, str) else value
    if isinstance(threshold, (int, float)) and not isinstance(threshold, bool):
        threshold = Absolute(float(threshold))
    match threshold:
        case Mapping():
            return threshold
        case Absolute(number) | Quantile(number):
            inside, bounds = 0 <= number < 1, "[0, 1)"
        case MacRatio(_, exponent) if not exponent > 0:
            raise AutoFlipError(f"exponent of {value!r} must be above 0.")
        case MacRatio(number) | Cumulative(number):
            inside, bounds = 0 < number <= 1, "(0, 1]"
        case Compression(number):
            inside, bounds = 1 <= number < np.inf, "[1, inf)"
        case _:
            raise AutoFlipError(f"threshold must be {_FORMS}, got {value!r}.")
    if not inside:
        raise AutoFlipError(f"threshold {value!r} must lie in {bounds}; use {_FORMS}.")
    return threshold


def _parse_text(text: str) -> Threshold | float:
    if "=" in text:
        pairs = [pair.partition("=") for pair in text.split(",")]
        if all(count.strip().isdecimal() for _, _, count in pairs):
            return {name.strip(): int(count) for name, _, count in pairs}
        raise AutoFlipError(f"units a group must read 'conv1=8,fc1=32', got {text!r}.")
    kind, colon, number = text.partition(":")
    try:
        if colon:
            return _KINDS[kind](float(number))
        return Compression(float(text[:-1])) if text.endswith("x") else float(text)
    except (KeyError, ValueError):
        raise AutoFlipError(f"threshold must be {_FORMS}, got {text!r}.") from None


def parse_target(
    macs: float | None, threshold: ThresholdLike | None
) -> Threshold | None:
    """Read a method's ``macs`` or ``threshold``; None if both are left out.

    Raises ``AutoFlipError`` if both are given, or a value cannot be read.
    """
    if macs is None:
        return None if threshold is None else parse_threshold(threshold)
    if threshold is not None:
        raise AutoFlipError(
            f"macs={macs!r} and threshold={threshold!r} both say how much is kept; "
            "leave one of them out (macs=None)."
        )
    is_number = isinstance(macs, (int, float)) and not isinstance(macs, bool)
    if not (is_number and 0 < macs <= 1):
        raise AutoFlipError(
            f"macs is the ratio of the MACs that is kept, in (0, 1], got {macs!r}; "
            "for another measure give threshold, such as '2x' for the parameters."
        )
    return MacRatio(macs)


# --- Choosing ---


def select(
    scores: Arrays,
    rule: Rule,
    cost: Cost = lambda _: 0.0,
    least: Mapping[str, int] | None = None,
) -> Kept:
    """Choose what is kept of scores in [0, 1], of any shape.

    ``cost`` and ``least`` are for ``Compression``, where the cost is one of parameters,
    and ``MacRatio``; see :func:`keep_even`.
    """
    match rule:
        case Absolute(value):
            return {name: s >= value for name, s in scores.items()}
        case Quantile(ratio, "global"):
            every = np.concatenate([s.ravel() for s in scores.values()])
            value = np.quantile(every, ratio)
            return {name: s > value for name, s in scores.items()}
        case Compression(factor):
            return keep_even(scores, cost, 1 / factor, least=least)
        case MacRatio(ratio):
            return keep_even(scores, cost, ratio, least=least)
        case Quantile(ratio):
            counts = {n: s.size - int(ratio * s.size + 1e-9) for n, s in scores.items()}
        case Cumulative(ratio):
            counts = {n: cumulative_count(s, ratio) for n, s in scores.items()}
    return {name: keep_top(s, counts[name]) for name, s in scores.items()}


def keep_top(scores: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Mark the ``count`` largest scores; the earlier one wins a tie.

    >>> keep_top(np.array([0.1, 0.5, 0.5]), 1)
    array([False,  True, False])
    """
    kept = np.zeros(scores.size, np.bool_)
    kept[np.argsort(-scores.ravel(), kind="stable")[: max(0, count)]] = True
    return kept.reshape(scores.shape)


def cumulative_count(scores: NDArray[Any], ratio: float) -> int:
    """Size of the smallest set that holds ``ratio`` of the scores' sum.

    All of them if the sum is 0: a layer that did not move has no boundary to find.

    >>> cumulative_count(np.array([0.6, 0.3, 0.1]), 0.7)
    2
    """
    falling = np.cumsum(np.sort(scores.ravel().astype(np.float64))[::-1])
    if not falling[-1] > 0:
        return scores.size
    return int(np.argmax(falling >= ratio * falling[-1] * (1 - 1e-12))) + 1


def keep_even(
    scores: Arrays,
    cost: Cost,
    target: float,
    multiple: int = 1,
    least: Mapping[str, int] | None = None,
) -> Kept:
    """Keep the same part of every group, as large as ``target`` in (0, 1] allows.

    The cost has to grow with every unit. A group keeps a multiple of ``multiple``, and
    at least so many (1) as ``least`` says, even above the target. Choices for different
    targets are nested.
    """
    sizes = {scores[name].size for name in scores}
    steps = np.unique(np.concatenate([np.arange(1, n + 1) / n for n in sizes]))
    # Sorted once: single weights are millions.
    orders = {n: np.argsort(-s.ravel(), kind="stable") for n, s in scores.items()}

    def choose(ratio: float) -> Kept:
        kept = {}
        for name, order in orders.items():
            count = int(ratio * order.size + 1e-9) // multiple * multiple
            fewest = -(-(1 if least is None else least[name]) // multiple) * multiple
            kept[name] = np.zeros(order.size, np.bool_)
            kept[name][order[: max(min(fewest, order.size), count)]] = True
        return {name: mask.reshape(scores[name].shape) for name, mask in kept.items()}

    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if cost(choose(steps[middle])) <= target * (1 + 1e-12):
            low = middle
        else:
            high = middle - 1
    return choose(steps[low])


def floors(layout: Layout) -> dict[str, int]:
    """Say how many units of each group are kept whatever a threshold asks for.

    A tenth, rounded up: a layer that is left with a unit or two lets nothing through.
    """
    return {group.name: -(-group.size // 10) for group in layout.groups}


# --- How many units each group keeps when all together may cost so much ---


def allocate(
    layout: Layout, ratio: float, exponent: float, least: Mapping[str, int]
) -> dict[str, int]:
    """Cut each group as far as what that saves is worth.

    Of all networks within this ratio of the MACs that can shrink, look for the one
    that loses least, where a group that keeps k of its n units loses
    ``(n / k) ** exponent``, and saved parameters count as much as saved MACs (both
    relative to the dense model). So a narrow layer that costs next to nothing, such as
    an embedding, is kept whole, and wide, expensive ones are cut first.

    Parameters
    ----------
    layout : Layout
    ratio : float
        In (0, 1]; MACs of layers that cannot shrink come on top.
    exponent : float
        Above 0, finite. The larger, the nearer all groups come to an even cut.
    least : mapping of str to int
        Group name to its fewest units, at least 1; see :func:`floors`.

    Returns
    -------
    dict of str to int
        Group name to how many units are kept, ``least`` even above the target. A
        larger ratio never keeps fewer.
    """
    costs = UnitCosts(layout)
    fewest = np.array([least[group.name] for group in layout.groups], np.float64)
    target = ratio * costs.macs(costs.sizes) * (1 + 1e-12)
    counts = costs.sizes if ratio >= 1 else fewest
    low, high = -60.0, 60.0  # widths, as powers of 2
    while ratio < 1 and high - low > 1e-12:
        middle = (low + high) / 2
        found = np.floor(costs.best(fewest, 2.0**middle, exponent) + 1e-9)
        if costs.macs(found) <= target:
            low, counts = middle, found
        else:
            high = middle
    return {g.name: int(n) for g, n in zip(layout.groups, counts, strict=True)}


class UnitCosts:
    """MACs and parameters of layers that can shrink, by units kept, one count a group.

    A tensor's size is the product of its axes' lengths, each linear in the counts.
    """

    def __init__(self, layout: Layout) -> None:
        tensors, self.names = layout.tensors, [g.name for g in layout.groups]
        self.sizes = np.array([g.size for g in layout.groups], np.float64)
        num_groups = len(self.names)
        # Unit to group; -1, nobody, finds the last place.
        group_of = np.append(
            np.repeat(np.arange(num_groups), self.sizes.astype(int)), num_groups
        )
        axes = [
            (number, np.full(length, -1) if owner is None else owner)
            for number, spec in enumerate(tensors)
            for length, owner in zip(spec.shape, spec.owners, strict=True)
        ]
        owned = np.array(
            [np.bincount(group_of[o], minlength=num_groups + 1) for _, o in axes]
        )
        self.per_unit, self.nobodys = owned[:, :-1] / self.sizes, owned[:, -1]
        self.tensor = np.array([number for number, _ in axes])
        macs = np.array([t.macs_per_weight for t in tensors])
        trained = np.array([t.trainable for t in tensors], np.float64)
        dense = np.array([t.size for t in tensors], np.float64)
        # What an element costs, relative to the dense model; for the best counts.
        self.weight = macs / max(macs @ dense, 1) + trained / (trained @ dense)
        # Layers that no unit touches cost the same whatever is chosen.
        can_shrink = np.array([t.name not in layout.fixed for t in tensors])
        self.macs_each, self.trained = macs * can_shrink, trained * can_shrink

    def values(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Count each tensor's elements."""
        values = np.ones(len(self.weight))
        np.multiply.at(values, self.tensor, self.per_unit @ counts + self.nobodys)
        return values

    def macs(self, counts: NDArray[np.float64]) -> float:
        """Count the MACs of layers that can shrink."""
        return float(self.macs_each @ self.values(counts))

    def mac_ratio(self, kept: Kept) -> float:
        """Compare a choice's MACs with all; ``AutoFlipError`` if there are none."""
        if not self.macs(self.sizes):
            raise AutoFlipError(
                "no layer that can shrink multiplies, so a ratio of the MACs chooses "
                "nothing; give a number of parameters such as threshold='2x'."
            )
        return self.macs(self._counts(kept)) / self.macs(self.sizes)

    def parameter_ratio(self, kept: Kept) -> float:
        """Compare a choice's parameters with all."""
        dense = self.trained @ self.values(self.sizes)
        return float(self.trained @ self.values(self._counts(kept)) / dense)

    def _counts(self, kept: Kept) -> NDArray[np.float64]:
        return np.array([kept[name].sum() for name in self.names], np.float64)

    def best(
        self, fewest: NDArray[np.float64], width: float, exponent: float
    ) -> NDArray[np.float64]:
        """Minimise the sum of (n / k)**p plus cost at a price that ``width`` says.

        There n**p / k**(p + 1) is as many times the cost's slope in every group, so
        that k = width * n**(p / (p + 1)) / slope**(1 / (p + 1)).
        """
        counts, root = self.sizes, 1 / (exponent + 1)
        for _ in range(60):
            lengths = self.per_unit @ counts + self.nobodys
            terms = (self.weight * self.values(counts))[self.tensor]
            slopes = (terms / lengths) @ self.per_unit + 1e-300
            wanted = width * self.sizes ** (1 - root) / slopes**root
            # Halfway on a logarithmic scale: layers' wishes depend on each other.
            counts = np.clip(np.sqrt(counts * wanted), fewest, self.sizes)
        return counts
