"""One node must not decide alone: robust means over explorers.

A client says what it likes. What an explorer says is brought to the others' scale
before it is combined (:mod:`.statistics`), may be trimmed, and is refused if it moved
far more than the others did, as what nodes trained is, by :mod:`.drift`.
"""

import numpy as np
from numpy.typing import NDArray

from ..errors import AutoFlipError

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
