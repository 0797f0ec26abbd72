"""What a target is: it reads bytes, and then sees to it that what it got is whole."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flwr_autoflip.errors import AutoFlipError


@dataclass(frozen=True)
class Target:
    """A generator function of bytes with an oracle in it, and where to begin.

    Until it yields, once, an ``AutoFlipError`` is a refusal. Any other exception, and
    any at all after the yield, is a finding. It yields whether all was accepted.

    Parameters
    ----------
    read : callable
    seeds : sequence of bytes
        Made from real messages and files.
    longest : int
        Bytes of an input.
    """

    read: Callable[[bytes], Iterator[bool]]
    seeds: Sequence[bytes]
    longest: int

    def run(self, data: bytes) -> bool:
        """Give whether the bytes were accepted."""
        steps = self.read(data)
        try:
            accepted = next(steps)
        except AutoFlipError:
            return False
        assert not list(steps)
        return accepted


def target(
    seeds: Sequence[bytes], longest: int = 4096
) -> Callable[[Callable[[bytes], Iterator[bool]]], Target]:
    """Make a target of a generator function."""
    return lambda read: Target(read, seeds, longest)
