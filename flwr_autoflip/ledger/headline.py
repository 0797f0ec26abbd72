"""Which of a server's metrics is the one to show."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

NAMES = ("top1", "accuracy", "acc")
"""What accuracy is called, best first; longer names that hold one come after these."""


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Choose the metrics that are numbers; texts, lists and flags are none.

    NaN and infinity are, but no integer beyond a float's range.

    Examples
    --------
    >>> numbers({"loss": 1, "name": "x", "each": [0.5], "huge": 10**400})
    {'loss': 1.0}
    """
    found = {}
    for name, value in metrics.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            with suppress(OverflowError):
                found[name] = float(value)
    return found


def headline(metrics: Mapping[str, Any]) -> tuple[str, float] | None:
    """Choose the metric that a line or a page shows first: its name and value.

    That is accuracy under any of its usual names, else the first number there is, if
    any. Metrics whose names begin with ``dense-`` are of another model.

    Examples
    --------
    >>> headline({"loss": 0.4, "top1": 0.9, "dense-top1": 0.95})
    ('top1', 0.9)
    >>> headline({"loss": 0.4})
    ('loss', 0.4)
    """
    found = [item for item in numbers(metrics).items() if item[0][:6] != "dense-"]
    exact = [item for name in NAMES for item in found if item[0] == name]
    alike = [item for item in found if any(name in item[0].lower() for name in NAMES)]
    return next(iter(exact + alike + found), None)
