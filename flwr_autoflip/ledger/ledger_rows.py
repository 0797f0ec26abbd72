"""Which lines of a ledger's file are rows: checked once, so that readers need not be.

A file may be cut short, damaged, or no ledger at all. A line that is no whole row is
left out and counted. What a row must hold:

=========  =======================================================================
phase      fields that are checked; others may be there
=========  =======================================================================
any        round, in [0, 100,000]; no value nested deeper than 20
a node's   node, status, reason, bytes_down, bytes_up; macs, examples, eval_examples
           macs_per_example and seconds, which may be null or missing: unknown
server     metrics, of any values; plan
plan       digest, plan, dense_units; dense_message and guidance may be missing
=========  =======================================================================

Sizes in ``plan`` may be null or missing, too. Counts lie in [0, 2^128).
"""

import json
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

NODE_PHASES = ("budget", "explore", "train", "evaluate")
"""Phases of rows that are a node's; others are the server's own."""
LAST_ROUND = 100_000
"""Readers keep some numbers a round."""
MOST = 2**128
MOST_UNITS = 2**32
DEEPEST = 20
LONGEST_SECONDS = 2.0**60
WORK = ("macs", "examples", "eval_examples", "macs_per_example")
SIZES = ("parameters", "zeros", "bytes", "dense_parameters", "macs", "dense_macs")


def parse_rows(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """Read a ledger file's rows.

    Parameters
    ----------
    content : bytes

    Returns
    -------
    rows : list of dict
    unreadable : int
        Lines that are no rows; a last one without its end is still being written and
        does not count.
    """
    rows, unreadable = [], 0
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if is_row(row):
            rows.append(row)
        elif number < len(lines) or line.endswith(b"\n"):
            unreadable += bool(line.strip())
    return rows, unreadable


def is_row(row: Any) -> bool:
    """Tell a whole row from what a damaged or foreign file holds instead."""
    if not isinstance(row, dict) or not _is_count(row.get("round"), LAST_ROUND + 1):
        return False
    phase = row.get("phase")
    if not isinstance(phase, str) or not _is_flat(row, DEEPEST):
        return False
    return CHECKS.get(phase, _is_foreign)(row)


def _is_node(row: Mapping[str, Any]) -> bool:
    return (
        _is_count(row.get("node"), 2**64)
        and all(isinstance(row.get(key), str) for key in ("status", "reason"))
        and all(_is_count(row.get(key)) for key in ("bytes_down", "bytes_up"))
        and all(_is_known(row.get(key)) for key in WORK)
        and (row.get("seconds") is None or _is_time(row["seconds"]))
    )


def _is_server(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("metrics"), dict) and _is_plan(row.get("plan"))


def _is_planned(row: Mapping[str, Any]) -> bool:
    message, groups = row.get("dense_message"), row.get("guidance")
    return (
        isinstance(row.get("digest"), str)
        and _is_plan(row.get("plan"))
        and _is_units(row.get("dense_units"))
        and (message is None or _is_message(message))
        and (groups is None or _is_guidance(groups))
    )


def _is_foreign(row: Mapping[str, Any]) -> bool:
    """Take rows of phases to come: readers pass them over."""
    return True


CHECKS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    **dict.fromkeys(NODE_PHASES, _is_node),
    "server": _is_server,
    "plan": _is_planned,
}


def _is_plan(plan: Any) -> bool:
    return (
        isinstance(plan, dict)
        and all(_is_known(plan.get(key)) for key in SIZES)
        and _is_units(plan.get("units", {}))
    )


def _is_units(units: Any) -> bool:
    return isinstance(units, dict) and all(
        _is_count(count, MOST_UNITS) for count in units.values()
    )


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(
        _is_count(message.get(key)) for key in ("down", "up", "metrics")
    )


def _is_guidance(groups: Any) -> bool:
    return isinstance(groups, dict) and all(map(_is_histogram, groups.values()))


def _is_histogram(counts: Any) -> bool:
    if not isinstance(counts, dict) or not _is_time(counts.get("top")):
        return False
    kept, pruned = counts.get("kept"), counts.get("pruned")
    if not isinstance(kept, list) or not isinstance(pruned, list):
        return False
    found = (_is_count(count, MOST_UNITS) for count in kept + pruned)
    return len(kept) == len(pruned) > 0 and all(found)


def _is_count(value: Any, end: int = MOST) -> bool:
    return type(value) is int and 0 <= value < end


def _is_known(value: Any) -> bool:
    """Tell a count, or null for one that nobody could take."""
    return value is None or _is_count(value)


def _is_time(value: Any) -> bool:
    number = type(value) is float and isfinite(value)
    return (number or type(value) is int) and 0 <= value <= LONGEST_SECONDS


def _is_flat(value: Any, depth: int) -> bool:
    if not isinstance(value, (dict, list)):
        return True
    inside = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_flat(one, depth - 1) for one in inside)
