"""Many rows of plain values in little memory, for runs with many nodes and rounds."""

import json
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, overload

Row = dict[str, Any]
BLOCK = 1000
"""Rows that are packed together."""


class Rows(Sequence[Row]):
    """A list of rows that only grows; all but the last ones are deflated JSON.

    A row of the ledger takes about 40 bytes instead of 620. Reading in order inflates
    each block once.

    Parameters
    ----------
    rows : iterable of dict (default: none)
        Values that JSON gives back as they were.
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

    def _block(self, number: int) -> list[Row]:
        if number == len(self._packed):
            return self._last
        if self._read[0] != number:
            self._read = number, json.loads(zlib.decompress(self._packed[number]))
        return self._read[1]

    def __len__(self) -> int:
        return BLOCK * len(self._packed) + len(self._last)

    @overload
    def __getitem__(self, place: int) -> Row: ...

    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...

    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        """Give a row, or a list of some."""
        places = range(len(self))[place]
        if isinstance(places, range):
            return [self._block(i // BLOCK)[i % BLOCK] for i in places]
        return self._block(places // BLOCK)[places % BLOCK]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
