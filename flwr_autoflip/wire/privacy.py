"""An explorer's report with noise of its own: local differential privacy.

What is noised is one non-negative vector a group (or tensor): the explorer's
deviations. Each is brought to the same L2 norm, all of them together to norm 1. That is
the clipping: whatever the node's data, its vector lies in the non-negative part of the
unit ball, where no two vectors are farther apart than the square root of 2. Gaussian
noise of that sensitivity makes *any* two data sets of the node indistinguishable up to
(epsilon, delta), which is more than hiding one example. No bound has to be guessed, and
a node's scale, which the server would divide by anyway, is not told at all.

What follows the noise is post-processing, which costs no privacy: each group is shifted
to minimum 0, as deviations are, and all is rounded to 16 bits.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AutoFlipError
from ..methods.guidance import Report

SENSITIVITY = 2**0.5
"""Largest L2 distance of two vectors of norm 1 without negative values."""

NOISE: random.Random = random.SystemRandom()
"""Where noise comes from: the operating system's cryptographic generator.

Nothing is drawn ahead, so that processes forked from one share no noise.
"""

_WAYS = "'epsilon:8' or 'epsilon:8,delta:1e-6', with epsilon > 0 and delta in (0, 1)"


@dataclass(frozen=True)
class ReportPrivacy:
    """How private a node's report is, against everyone who sees it.

    Parameters
    ----------
    epsilon : float
        Above 0; infinite for no noise.
    delta : float (default: 1e-5)
        In (0, 1).
    """

    epsilon: float
    delta: float = 1e-5

    def __str__(self) -> str:
        """Write it as :func:`parse_privacy` reads it."""
        return f"epsilon:{self.epsilon!r},delta:{self.delta!r}"

    def noise_std(self) -> float:
        """Give the standard deviation of the noise on each value.

        The smallest that suffices for a single release, from Google's dp-accounting;
        ``AutoFlipError`` if that is not installed.
        """
        if self.epsilon == np.inf:
            return 0.0
        try:
            from dp_accounting import get_sigma_gaussian
        except ImportError as error:
            raise AutoFlipError(
                "noise on reports needs dp-accounting: pip install "
                "'flwr-autoflip[privacy]' on this node."
            ) from error
        return SENSITIVITY * float(get_sigma_gaussian(self.epsilon, self.delta))


def parse_privacy(value: Any, *, whose: str) -> ReportPrivacy | None:
    """Read how private a node's report is to be; None or ``""`` is no noise.

    Anything else but the accepted forms is an ``AutoFlipError`` that lists them, and
    begins with ``whose`` it is.

    Examples
    --------
    >>> parse_privacy("epsilon:8", whose="node 7")
    ReportPrivacy(epsilon=8.0, delta=1e-05)
    """
    if value is None or value == "":
        return None
    text = value if isinstance(value, str) and len(value) < 100 else "?"
    pairs = [pair.partition(":") for pair in text.split(",")]
    try:
        given = {name.strip(): float(number) for name, _, number in pairs}
    except ValueError:
        given = {}
    epsilon, delta = given.get("epsilon", 0.0), given.get("delta", 1e-5)
    if set(given) - {"epsilon", "delta"} or not (epsilon > 0 and 0 < delta < 1):
        raise AutoFlipError(
            f"{whose}: autoflip-privacy must be {_WAYS}, got {value!r}."
        )
    return ReportPrivacy(epsilon, delta)


def bound(report: Report) -> dict[str, NDArray[np.float64]]:
    """Bring every part of a report to the same L2 norm, and all of it to at most 1.

    Parts that are 0 stay so, and what is not finite, as where training went wrong,
    counts as 0. Same shapes, float64.

    Examples
    --------
    >>> parts = bound({"fc1": np.float32([0, 30, 40]), "fc2": np.float32([0, 5])})
    >>> np.round(parts["fc1"] * 2**0.5, 6), np.round(parts["fc2"] * 2**0.5, 6)
    (array([0. , 0.6, 0.8]), array([0., 1.]))
    """
    parts = {}
    for name, values in report.items():
        part = np.where(np.isfinite(values), values, 0).astype(np.float64)
        norm = float(np.linalg.norm(part)) * len(report) ** 0.5
        parts[name] = part / norm if norm > 0 else part
    return parts


def add_noise(parts: Mapping[str, NDArray[Any]], std: float) -> dict[str, NDArray[Any]]:
    """Add normal noise to every value, then shift each part to minimum 0."""
    noised = {}
    for name, values in parts.items():
        # Not ``gauss``: it keeps a second value back, which forks would share.
        drawn = (NOISE.normalvariate(0.0, std) for _ in range(values.size))
        noise = np.fromiter(drawn, np.float64, values.size).reshape(values.shape)
        part = values + noise
        noised[name] = part - part.min() if part.size else part
    return noised
