"""Examples as every source makes them: images with labels, windows of text."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEQUENCE = 80
VOCABULARY = (
    "\n !\"&'(),-."
    + string.digits
    + ":;>?"
    + string.ascii_uppercase
    + "[]"
    + string.ascii_lowercase
    + "}"
)
"""LEAF's 80 symbols."""
MIN_ROLE = 2000
"""Characters; shorter roles are left out."""
TEST_SHARE = 0.2
"""Of a role's text, its end."""


class DataError(ValueError):
    """A data file that is missing or is not what its name says."""


@dataclass(frozen=True)
class Examples:
    """A training or a test set.

    Parameters
    ----------
    inputs : ndarray of uint8
        Images ``(n, h, w)`` or ``(n, h, w, 3)``, or codes ``(n, 80)``.
    labels : ndarray of int64
        ``(n,)``, or ``(n, 80)``: for each code the one that follows.
    owners : ndarray of str, optional
        ``(n,)``: who wrote or says it.
    """

    inputs: NDArray[np.uint8]
    labels: NDArray[np.int64]
    owners: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: NDArray[Any]) -> "Examples":
        """Give some of the examples."""
        owners = None if self.owners is None else self.owners[rows]
        return Examples(self.inputs[rows], self.labels[rows], owners)


def windows_of(texts: Sequence[str], roles: Sequence[str]) -> Examples:
    """Cut texts, one a role, into windows of 80 symbols."""
    windows, owners = [], []
    for text, role in zip(texts, roles, strict=True):
        codes = encode(text)
        count = max(0, (len(codes) - 1) // SEQUENCE)
        starts = SEQUENCE * np.arange(count)[:, None] + np.arange(SEQUENCE + 1)
        windows.append(codes[starts])
        owners += [role] * count
    codes = np.concatenate(windows)
    return Examples(codes[:, :-1], codes[:, 1:].astype(np.int64), np.array(owners))


def encode(text: str) -> NDArray[np.uint8]:
    """Give each symbol's place in the vocabulary; an unknown one is a space."""
    table = np.full(256, VOCABULARY.index(" "), np.uint8)
    table[[ord(symbol) for symbol in VOCABULARY]] = range(len(VOCABULARY))
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    return table[np.minimum(points, 255)]  # no symbol lies as high
