"""One node must not decide alone: robust means, and scales far outside.

A client says what it likes. What an explorer says is brought to the others' scale
before it is combined (:mod:`.statistics`), may be trimmed, and is refused if it moved
far more than the others did. What nodes trained is compared in :mod:`.drift`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import AutoFlipError

FAR = 10.0
"""A norm that many times the median is far outside, however alike the others are."""

SPREADS = 5.0
"""Where norms differ more: so many standard deviations of their logarithms."""

_WAYS = "'mean', 'median' or 'trimmed-mean:0.2', a share below 0.5"


def parse_combination(value: str) -> float:
    """Read how explorers' deviations are averaged.

    Parameters
    ----------
    value : str
        ``"mean"``, ``"median"``, ``"trimmed-mean:SHARE"``.

    Returns
    -------
    float
        The share that :func:`trimmed_mean` leaves out at either end: 0 is the mean,
        0.5 the median.

    Raises
    ------
    AutoFlipError
        If it is anything else; the message lists the accepted forms.

    Examples
    --------
    >>> parse_combination("trimmed-mean:0.2")
    0.2
    """
    kind, _, number = value.partition(":") if isinstance(value, str) else ("",) * 3
    if value in ("mean", "median"):
        return 0.0 if value == "mean" else 0.5
    try:
        share = float(number)
    except ValueError:
        share = 0.0
    if kind != "trimmed-mean" or not 0 < share < 0.5:
        raise AutoFlipError(f"combination must be {_WAYS}, got {value!r}.")
    return share


def trimmed_mean(values: NDArray[np.floating], trim: float) -> NDArray[np.float64]:
    """Average every coordinate without its lowest and highest values.

    Parameters
    ----------
    values : ndarray
        ``(num_explorers, size)``.
    trim : float
        Share left out at either end, rounded down; at 0.5 one or two values stay, whose
        mean is the median.

    Returns
    -------
    ndarray
        ``(size,)`` float64.

    Examples
    --------
    >>> values = np.array([[1.0], [2.0], [6.0], [99.0]])
    >>> trimmed_mean(values, 0.25), trimmed_mean(values, 0.5)
    (array([4.]), array([4.]))
    """
    count = len(values)
    out = min(int(trim * count + 1e-9), (count - 1) // 2)
    if out:
        values = np.partition(values, (out, count - out - 1), axis=0)
    middle: NDArray[np.float64] = values[out : count - out].mean(axis=0, dtype=float)
    return middle


def far_outside(norms: Sequence[float]) -> tuple[float, float]:
    """Say how large the norms of nodes that mean well can be.

    Norms are compared by their logarithms, with median and median absolute deviation,
    which fewer than half of the nodes cannot move far. Where clients differ much,
    as they do when some have a hundred times the data of others, the limit is wider.

    Parameters
    ----------
    norms : sequence of float
        Of explorers' updates, or of what nodes trained; positive.

    Returns
    -------
    median : float
    limit : float
        The largest norm that is not far outside; infinite for fewer than three nodes.
        There is no lower one: few data move little, and scaled reports that moved
        little count no more than others.

    Examples
    --------
    >>> median, limit = far_outside([1.0, 1.0, 2.0, 2.0, 1e6])
    >>> round(median, 6), round(limit, 3)
    (2.0, 340.852)
    """
    logs = np.log(norms)
    if len(logs) < 3:
        return float("nan"), float("inf")
    median = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - median)))
    limit = median + max(np.log(FAR), SPREADS * spread)
    return float(np.exp(median)), float(np.exp(min(limit, 700.0)))
