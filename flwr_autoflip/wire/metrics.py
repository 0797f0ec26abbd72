"""An app's metrics from a node: those that can be averaged, and why others cannot.

A metric is a finite number or a list of them, under a short name that can be shown.
Whatever else comes under that title is left out; it costs a node its metrics, never its
training.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import visible
from .keys import PREFIX, is_number

LONGEST_NAME = 128
"""Characters of a metric's name."""

MOST_METRICS = 1_000
"""Names of one reply."""

MOST_NUMBERS = 10_000
"""Of all metrics of one reply, lists' included."""

_SHOWN, _SHOWN_NAME = 3, 40


def usable_metrics(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Give the metrics that an inner strategy can average.

    And say what was left out and why, fit for a log; "" if nothing was.

    Examples
    --------
    >>> usable_metrics({"loss": 0.5, "accuracy": float("nan"), "per-class": []})
    ({'loss': 0.5}, "'accuracy' is not finite, 'per-class' is an empty list")
    """
    if len(metrics) > MOST_METRICS:
        return {}, f"{len(metrics)} came, at most {MOST_METRICS} are taken"
    faults = {name: _fault(name, value) for name, value in metrics.items()}
    usable = {name: metrics[name] for name, fault in faults.items() if not fault}
    lists = [value for value in usable.values() if isinstance(value, list)]
    numbers = len(usable) - len(lists) + sum(map(len, lists))
    if numbers > MOST_NUMBERS:
        return {}, f"they hold {numbers} numbers, at most {MOST_NUMBERS} are taken"
    wrong = [
        f"{visible(name, _SHOWN_NAME)!r} {fault}"
        for name, fault in faults.items()
        if fault
    ]
    more = [f"{len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
    return usable, ", ".join(wrong[:_SHOWN] + more)


def common_metrics(
    replies: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Keep the metrics that all replies have: averaging raises on any other.

    Gives one dict a reply, all with the same names and lists of a name of one length;
    and the names that are left out, sorted.

    Examples
    --------
    >>> common_metrics([{"loss": 1.0, "mine": 2.0}, {"loss": 3.0}])
    ([{'loss': 1.0}, {'loss': 3.0}], ['mine'])
    """
    shapes = [{(n, _length(v)) for n, v in reply.items()} for reply in replies]
    shared = set.intersection(*shapes) if shapes else set()
    names = {name for name, _ in shared}
    left_out = sorted({name for reply in replies for name in reply} - names)
    common = [{n: v for n, v in reply.items() if n in names} for reply in replies]
    return common, left_out


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, list) else None


def _fault(name: str, value: Any) -> str:
    """Say what is wrong with a metric; empty if nothing is."""
    if len(name) > LONGEST_NAME:
        return f"has more than {LONGEST_NAME} characters"
    if not name.isprintable():
        return "cannot be printed"
    if name.startswith(PREFIX):
        return f"is a name of ours, {PREFIX}*"
    if isinstance(value, list):
        if not value:
            return "is an empty list"
        if len(value) > MOST_NUMBERS:
            return f"has more than {MOST_NUMBERS} numbers"
    numbers = value if isinstance(value, list) else [value]
    if not all(map(is_number, numbers)):
        return "is no number"
    finite = all(-math.inf < number < math.inf for number in numbers)
    return "" if finite else "is not finite"
