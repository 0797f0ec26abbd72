"""Who stays, given scores: Eq. 11's threshold and its kinder relatives.

Scores come as one array a layer; larger means more needed. Every rule answers with
boolean arrays of the same shapes, True = kept. Ties are broken by position, so equal
scores give the same plan everywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import AutoFlipError

Scores = Mapping[str, NDArray[Any]]
Kept = dict[str, NDArray[np.bool_]]
_BINS = 1024

Cost = Callable[[Kept], float]
"""Share, in (0, 1], that a choice has of the dense cost, as far as that can shrink."""


@dataclass(frozen=True)
class Absolute:
    """Keep what scores at least ``value`` (Eq. 11's T_p)."""

    value: float = 0.3


@dataclass(frozen=True)
class Quantile:
    """Drop the lowest share, in each layer (``"layer"``) or over all (``"global"``).

    The global form is the authors' code: what does not lie strictly above the
    quantile's value goes, ties included.
    """

    share: float = 0.3
    scope: Literal["layer", "global"] = "layer"


@dataclass(frozen=True)
class Compression:
    """Keep the largest even share of each layer within 1/``factor`` of parameters.

    Parameters of layers that cannot shrink, such as excluded ones, are not counted.
    """

    factor: float = 2.0


@dataclass(frozen=True)
class MacShare:
    """Keep at most ``share`` of the MACs that can shrink.

    Those of layers that no prunable unit touches, such as excluded ones, come on top.
    Layers share the cut by what it saves, see :func:`.allocate.allocate`; the larger
    the exponent, the more alike, and with an infinite one all keep the largest share
    of theirs that fits.
    """

    share: float = 0.5
    exponent: float = 1.0


@dataclass(frozen=True)
class Mass:
    """Per layer, keep the smallest set that holds ``share`` of the scores' sum."""

    share: float = 0.7


Threshold = Absolute | Quantile | Compression | MacShare | Mass
ThresholdLike = Threshold | float | str

_WAYS = (
    "'macs:0.25', 'even-macs:0.25', '2x' (parameters), 'mass:0.7', 0.3 (absolute T_p), "
    "'quantile:0.3' or 'global-quantile:0.3'"
)


def parse_threshold(value: ThresholdLike) -> Threshold:
    """Turn a short form into a threshold and check its range.

    Parameters
    ----------
    value : Threshold, float or str
        ``"macs:SHARE"``, ``"even-macs:SHARE"``, ``"FACTORx"``, ``"mass:SHARE"``, a
        float for T_p, ``"quantile:SHARE"`` or ``"global-quantile:SHARE"``.

    Returns
    -------
    Threshold

    Raises
    ------
    AutoFlipError
        If it is none of these or out of its range.

    Examples
    --------
    >>> parse_threshold("2x")
    Compression(factor=2.0)
    >>> parse_threshold("mass:0.5")
    Mass(share=0.5)
    """
    threshold = _parse_text(value) if isinstance(value, str) else value
    if isinstance(threshold, (int, float)) and not isinstance(threshold, bool):
        threshold = Absolute(float(threshold))
    match threshold:
        case Absolute(number) | Quantile(number):
            inside, bounds = 0 <= number < 1, "[0, 1)"
        case MacShare(_, exponent) if not exponent > 0:
            raise AutoFlipError(f"exponent of {value!r} must be above 0.")
        case MacShare(number) | Mass(number):
            inside, bounds = 0 < number <= 1, "(0, 1]"
        case Compression(number):
            inside, bounds = 1 <= number < np.inf, "[1, inf)"
        case _:
            raise AutoFlipError(f"threshold must be {_WAYS}, got {value!r}.")
    if not inside:
        raise AutoFlipError(f"threshold {value!r} must lie in {bounds}; use {_WAYS}.")
    return threshold


def _parse_text(text: str) -> Threshold | float:
    kind, _, number = text.partition(":")
    try:
        if not number and kind.endswith("x"):
            return Compression(float(kind[:-1]))
        match kind:
            case "mass":
                return Mass(float(number))
            case "quantile":
                return Quantile(float(number))
            case "global-quantile":
                return Quantile(float(number), "global")
            case "macs":
                return MacShare(float(number))
            case "even-macs":
                return MacShare(float(number), exponent=np.inf)
            case _:
                return float(text)
    except ValueError:
        raise AutoFlipError(f"threshold must be {_WAYS}, got {text!r}.") from None


def select(
    scores: Scores,
    threshold: Threshold,
    cost: Mapping[type, Cost],
    least: Mapping[str, int] | None = None,
) -> Kept:
    """Choose what stays.

    Parameters
    ----------
    scores : mapping of str to ndarray
        One array a layer, any shape, in [0, 1].
    threshold : Threshold
    cost : mapping of type to Cost
        What ``Compression`` (parameters) and ``MacShare`` (MACs) mean for a choice.
    least : mapping of str to int, optional
        For those two; see :func:`keep_even`.

    Returns
    -------
    dict of str to ndarray
        True where kept.
    """
    match threshold:
        case Absolute(value):
            return {name: s >= value for name, s in scores.items()}
        case Quantile(share, "layer"):
            return {
                n: keep_top(s, s.size - int(share * s.size + 1e-9))
                for n, s in scores.items()
            }
        case Quantile(share, _):
            return _above_global_quantile(scores, share)
        case Mass(share):
            return {n: keep_top(s, mass_count(s, share)) for n, s in scores.items()}
        case Compression(factor):
            return keep_even(scores, cost[Compression], 1 / factor, least=least)
        case MacShare(share):
            return keep_even(scores, cost[MacShare], share, least=least)


def keep_top(scores: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Mark the ``count`` largest scores; the earlier one wins a tie.

    Examples
    --------
    >>> keep_top(np.array([0.1, 0.5, 0.5]), 1)
    array([False,  True, False])
    """
    flat = scores.ravel()
    kept = np.zeros(flat.size, np.bool_)
    if count >= flat.size:
        kept[:] = True
    elif count > 0:
        edge = np.partition(flat, flat.size - count)[flat.size - count]
        np.greater(flat, edge, out=kept)
        missing = count - int(np.count_nonzero(kept))
        kept[np.flatnonzero(flat == edge)[:missing]] = True
    return kept.reshape(scores.shape)


def mass_count(scores: NDArray[Any], share: float) -> int:
    """Size of the smallest set that holds ``share`` of the scores' sum.

    All of them if the sum is 0: a layer that did not move has no boundary to find.

    Examples
    --------
    >>> mass_count(np.array([0.6, 0.3, 0.1]), 0.7)
    2
    """
    rest = scores.ravel().astype(np.float64)
    goal = share * rest.sum() * (1 - 1e-12)
    if not goal > 0:
        return int(rest.size)
    count, mass = 0, 0.0
    # Sorting millions for one boundary is waste: look in which of many intervals of
    # scores it lies, and go on inside.
    while rest.size > _BINS and rest.min() < rest.max():
        bins = ((rest - rest.min()) * ((_BINS - 1) / np.ptp(rest))).astype(np.intp)
        falling = np.cumsum(np.bincount(bins, rest, _BINS)[::-1])
        edge = _BINS - 1 - int(np.argmax(mass + falling >= goal))
        above = bins > edge
        count, mass = count + int(np.count_nonzero(above)), mass + rest[above].sum()
        rest = rest[bins == edge]
    reached = mass + np.cumsum(np.sort(rest)[::-1]) >= goal
    return count + (int(np.argmax(reached)) + 1 if reached.any() else int(rest.size))


def _above_global_quantile(scores: Scores, share: float) -> Kept:
    value = np.quantile(np.concatenate([s.ravel() for s in scores.values()]), share)
    return {name: s > value for name, s in scores.items()}


def keep_even(
    scores: Scores,
    cost: Cost,
    target: float,
    multiple: int = 1,
    least: Mapping[str, int] | None = None,
) -> Kept:
    """Keep the same share of every layer, as large as the target allows.

    Choices for different targets are nested.

    Parameters
    ----------
    scores : mapping of str to ndarray
    cost : Cost
        Grows with every unit that is added.
    target : float
        Largest share of the dense cost, in (0, 1].
    multiple : int (default: 1)
        Keep a multiple of this many a layer, fewer rather than more.
    least : mapping of str to int, optional
        The fewest of each layer; left out, 1.

    Returns
    -------
    dict of str to ndarray
        Exact to the last unit; at least ``least`` a layer, rounded up to a multiple if
        it has so many, even above the target.
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
