"""Subsets as few bits as there are choices: enumerative coding (Cover, 1973).

A subset of ``n`` units with ``k`` members is one of ``n choose k``. Its code is ``k``,
then its number among these, in lexicographic order. Long subsets are cut into blocks,
so that time grows linearly.
"""

from math import comb

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError

BLOCK = 4096
"""Units a block: numbers of at most so many bits."""


def subset_bits(size: int) -> int:
    """Bound the bits that a subset of ``size`` units takes."""
    whole, rest = divmod(size, BLOCK)
    blocks = [BLOCK] * whole + [rest] * bool(rest)
    return sum(length + length.bit_length() for length in blocks)


def write_subset(chosen: NDArray[np.bool_]) -> str:
    """Write a subset as a string of the digits 0 and 1.

    Parameters
    ----------
    chosen : ndarray
        ``(size,)`` bool.

    Returns
    -------
    str
        Within ``log2(n + 1) + 2`` bits a block of the entropy of a choice.

    Examples
    --------
    One of three is 01 in two bits; the last of the three subsets is number 2.

    >>> write_subset(np.array([True, False, False]))
    '0110'
    """
    parts = []
    for start in range(0, chosen.size, BLOCK):
        block = chosen[start : start + BLOCK]
        count, size = int(np.count_nonzero(block)), block.size
        parts.append(_digits(count, size.bit_length()))
        parts.append(_digits(_rank(block.tolist(), count), _rank_bits(size, count)))
    return "".join(parts)


def read_subset(digits: str, start: int, size: int) -> tuple[NDArray[np.bool_], int]:
    """Read :func:`write_subset`.

    Parameters
    ----------
    digits : str
        Of 0 and 1.
    start : int
        Where the subset's code begins.
    size : int
        Units in all.

    Returns
    -------
    chosen : ndarray
        ``(size,)`` bool.
    end : int
        Where the code ends.

    Raises
    ------
    WireError
        If the code is cut short or names no subset.
    """
    chosen = np.zeros(size, np.bool_)
    for first in range(0, size, BLOCK):
        length = min(BLOCK, size - first)
        count, start = _number(digits, start, length.bit_length())
        if count > length:
            raise WireError(f"a subset of {length} units cannot have {count} members.")
        rank, start = _number(digits, start, _rank_bits(length, count))
        if rank >= comb(length, count):
            raise WireError(f"no subset of {count} in {length} units has number {rank}")
        chosen[first : first + length] = _unrank(rank, length, count)
    return chosen, start


def _rank_bits(size: int, count: int) -> int:
    return (comb(size, count) - 1).bit_length()


def _digits(number: int, width: int) -> str:
    return format(number, f"0{width}b") if width else ""


def _number(digits: str, start: int, width: int) -> tuple[int, int]:
    part = digits[start : start + width]
    if len(part) < width:
        raise WireError(f"a subset's code has {len(part)} of {width} bits.")
    return int(part or "0", 2), start + width


def _rank(block: list[bool], count: int) -> int:
    """Count the subsets of equal size before this one: zero sorts before one."""
    rank, left = 0, count
    rest = len(block) - 1  # units after this one
    ways = comb(rest, left)  # to choose what is left among them
    for member in block:
        if member:
            rank += ways
        if rest:
            ways = ways * (left if member else rest - left) // rest
        left, rest = left - member, rest - 1
    return rank


def _unrank(rank: int, size: int, count: int) -> list[bool]:
    block, left, rest = [], count, size - 1
    ways = comb(rest, left)
    for _ in range(size):
        member = left > 0 and rank >= ways
        block.append(member)
        if member:
            rank -= ways
        if rest:
            ways = ways * (left if member else rest - left) // rest
        left, rest = left - member, rest - 1
    return block
