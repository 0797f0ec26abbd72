"""Rows of a ledger: what they hold, which lines of a file are some, many in memory.

A file may be cut short, damaged, or no ledger at all. A line that is no whole row is
left out and counted, so that readers of rows need not check them. :data:`_CHECKS` names
the fields that are checked, others may be there; what is not known is null or missing.
Rows of other phases pass: readers leave them out.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

NODE_PHASES = ("budget", "explore", "train", "evaluate")
"""Phases of rows that are a node's; others are the server's own."""
LAST_ROUND = 100_000
"""Readers keep some numbers a round."""
STEP_PER_FORWARD = 3
"""MACs of a training step over those of its forward pass: one forward, two backward."""
BLOCK = 1000
"""Rows that are packed together in memory."""
DEEPEST = 20
LONGEST_SECONDS = 2.0**60

Row = dict[str, Any]
Status = Literal["ok", "refused", "failed", "missing", "lost"]


@dataclass(frozen=True)
class NodeRow:
    """One node in one phase of one round.

    Parameters
    ----------
    round : int
    phase : {"budget", "explore", "train", "evaluate"}
    node : int
        Flower's node id.
    status : {"ok", "refused", "failed", "missing", "lost"}
        ``"failed"`` is the node's own error, ``"refused"`` a reply that broke a rule,
        ``"lost"`` work of a round that the server did not finish before it stopped.
    reason : str (default: "")
        Why it is not ``"ok"``, or which metrics of a reply that is were left out.
    bytes_down, bytes_up : int
        Serialised messages, bytes.
    plan_bytes : int
        Part of ``bytes_down`` that describes structure.
    parameters : int
        Trainable values of the model that the node really built; 0 if it built none.
    macs_per_example : int or None
        Forward MACs of that model, counted on the server's ``example_input``.
    examples, eval_examples : int or None
        Examples that went through it with and without gradients, epochs included.
    forward_macs, eval_macs : int or None
        MACs of its forward passes with and without gradients, counted on the node;
        behind a mod, the examples that the app reports at ``macs_per_example`` each.
    uncounted : str (default: "")
        Why some of these are None, which is unknown.
    seconds : float
        In the app's own training or testing code.
    """

    round: int
    phase: str
    node: int
    status: Status = "ok"
    reason: str = ""
    bytes_down: int = 0
    bytes_up: int = 0
    plan_bytes: int = 0
    parameters: int = 0
    macs_per_example: int | None = 0
    examples: int | None = 0
    eval_examples: int | None = 0
    forward_macs: int | None = 0
    eval_macs: int | None = 0
    uncounted: str = ""
    seconds: float = 0.0

    @property
    def macs(self) -> int | None:
        """MACs the node spent: training steps at three forward passes each."""
        if self.forward_macs is None or self.eval_macs is None:
            return None
        return STEP_PER_FORWARD * self.forward_macs + self.eval_macs


class Rows(Sequence[Row]):
    """A list of rows that only grows; all but the last ones are deflated JSON.

    A row of the ledger takes about 40 bytes instead of 620. Reading in order inflates
    each block once. Values must be such that JSON gives back as they were.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._packed: list[bytes] = []
        self._last: list[Row] = []
        self._read: tuple[int, list[Row]] = -1, []
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        """Put a row behind the others."""
        self._last.append(row)
        if len(self._last) == BLOCK:
            self._packed.append(zlib.compress(json.dumps(self._last).encode()))
            self._last = []

    def __len__(self) -> int:
        return BLOCK * len(self._packed) + len(self._last)

    def __getitem__(self, place: int | slice) -> Any:
        """Give a row, or a list of some."""
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number, inside = divmod(range(len(self))[place], BLOCK)
        if number == len(self._packed):
            return self._last[inside]
        if self._read[0] != number:
            self._read = number, json.loads(zlib.decompress(self._packed[number]))
        return self._read[1][inside]

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else False

    __hash__ = None  # type: ignore[assignment]


def parse_rows(content: bytes) -> tuple[list[Row], int]:
    """Read a ledger file's rows, and count the lines that are none.

    A last line without its end is still being written and does not count.
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
    if not _is_any(row) or not _is_flat(row, DEEPEST):
        return False
    return row["phase"] not in _CHECKS or _CHECKS[row["phase"]](row)


# --- Checks of values ---

Check = Callable[[Any], bool]


def _below(end: int) -> Check:
    return lambda value: type(value) is int and 0 <= value < end


def _maybe(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _fields(**checks: Check) -> Check:
    """Check some fields of a dict; one that is missing is None."""
    return lambda value: (
        isinstance(value, dict)
        and all(check(value.get(name)) for name, check in checks.items())
    )


def _each(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_amount(value: Any) -> bool:
    number = type(value) is float and isfinite(value)
    return (number or type(value) is int) and 0 <= value <= LONGEST_SECONDS


def _is_flat(value: Any, depth: int) -> bool:
    if not isinstance(value, (dict, list)):
        return True
    inside = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_flat(one, depth - 1) for one in inside)


_is_count, _is_unit_count = _below(2**128), _below(2**32)
_is_units = _each(_is_unit_count)
_SIZES = ("parameters", "zeros", "bytes", "dense_parameters", "macs", "dense_macs")
_is_plan = _fields(**dict.fromkeys(_SIZES, _maybe(_is_count)), units=_maybe(_is_units))


def _is_histogram(counts: Any) -> bool:
    if not isinstance(counts, dict) or not _is_amount(counts.get("top")):
        return False
    kept, pruned = counts.get("kept"), counts.get("pruned")
    if not isinstance(kept, list) or not isinstance(pruned, list):
        return False
    return len(kept) == len(pruned) > 0 and all(map(_is_unit_count, kept + pruned))


_is_any = _fields(round=_below(LAST_ROUND + 1), phase=_is_text)
_WORK = ("macs", "examples", "eval_examples", "macs_per_example")
_is_node = _fields(
    node=_below(2**64),
    **dict.fromkeys(("status", "reason"), _is_text),
    **dict.fromkeys(("bytes_down", "bytes_up"), _is_count),
    **dict.fromkeys(_WORK, _maybe(_is_count)),
    seconds=_maybe(_is_amount),
)
_CHECKS = {
    **dict.fromkeys(NODE_PHASES, _is_node),
    "server": _fields(metrics=lambda value: isinstance(value, dict), plan=_is_plan),
    "plan": _fields(
        digest=_is_text,
        plan=_is_plan,
        dense_units=_is_units,
        dense_message=_maybe(_fields(down=_is_count, up=_is_count, metrics=_is_count)),
        importance=_maybe(_each(_is_histogram)),
    ),
}
