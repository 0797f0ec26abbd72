"""Python values <-> JSON and arrays: what a checkpoint's state is made of, no pickle.

``None``, bools, numbers and strings stand for themselves. Everything else is a list
that begins with a tag: ``["list", ...]``, ``["array", name]``. An object met twice is
``["same", n]``, the n-th that was finished, so that it is one object again when read:
FedAvgM's idea of the global model and ours are one record, and have to stay one.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.layout import Arrays


@dataclass(frozen=True)
class Kind:
    """A further type that a tree may hold.

    Parameters
    ----------
    tag : str
    type : type
        Exactly this one, not its subclasses.
    to_plain : callable
        Gives what the tree knows already.
    from_plain : callable
        Its inverse.
    """

    tag: str
    type: type
    to_plain: Callable[[Any], Any]
    from_plain: Callable[[Any], Any]


def _is_scalar(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)


@dataclass
class TreeWriter:
    """Turn values into JSON's types, arrays aside.

    Parameters
    ----------
    kinds : sequence of Kind (default: none)
    arrays : dict of str to ndarray
        Where arrays go; ``"0"``, ``"1"``, ... in the order they come.
    """

    kinds: Sequence[Kind] = ()
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    # The objects themselves are kept: ids of those that are gone are given away again.
    _finished: dict[int, tuple[int, Any]] = field(default_factory=dict)
    _open: set[int] = field(default_factory=set)

    def write(self, value: Any) -> Any:
        """Give a value's JSON.

        Parameters
        ----------
        value : object
            Lists, tuples, sets, dicts, bytes, arrays and NumPy scalars, of the exact
            types, nested in any way, and the further kinds.

        Returns
        -------
        None, bool, int, float, str or list

        Raises
        ------
        TypeError
            On any other type, or a value that holds itself.
        """
        if _is_scalar(value):
            return value
        if id(value) in self._finished:
            return ["same", self._finished[id(value)][0]]
        if id(value) in self._open:
            raise TypeError("it holds itself")
        before = len(self._finished), len(self.arrays)
        self._open.add(id(value))
        try:
            written = self._write(value)
        except TypeError:
            self._forget(*before)
            raise
        finally:
            self._open.discard(id(value))
        self._finished[id(value)] = len(self._finished), value
        return written

    def _forget(self, finished: int, arrays: int) -> None:
        """Go back to where a value began that turned out not to be writable."""
        while len(self._finished) > finished:
            self._finished.popitem()
        while len(self.arrays) > arrays:
            self.arrays.popitem()

    def _write(self, value: Any) -> list[Any]:
        for kind in self.kinds:
            if type(value) is kind.type:
                return [kind.tag, self.write(kind.to_plain(value))]
        if type(value) in (list, tuple, set):
            return [type(value).__name__, *(self.write(item) for item in value)]
        if type(value) is dict:
            pairs = [[self.write(k), self.write(v)] for k, v in value.items()]
            return ["dict", *pairs]
        if type(value) is bytes:
            return ["bytes", b64encode(value).decode()]
        if isinstance(value, np.generic) or type(value) is np.ndarray:
            array = np.asarray(value)
            if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
                raise TypeError(f"an array of {array.dtype}")
            name = f"{len(self.arrays)}"
            self.arrays[name] = array
            return ["array" if type(value) is np.ndarray else "scalar", name]
        raise TypeError(type(value).__name__)


@dataclass
class TreeReader:
    """The inverse of :class:`TreeWriter`; values must be read in the order written.

    Parameters
    ----------
    arrays : mapping of str to ndarray
    kinds : sequence of Kind (default: none)
    """

    arrays: Arrays
    kinds: Sequence[Kind] = ()
    _finished: list[Any] = field(default_factory=list)

    def read(self, written: Any) -> Any:
        """Give the value that was written."""
        if _is_scalar(written):
            return written
        tag, *body = written
        if tag == "same":
            return self._finished[body[0]]
        value = self._read(tag, body)
        self._finished.append(value)
        return value

    def _read(self, tag: str, body: list[Any]) -> Any:
        match tag:
            case "list":
                return [self.read(item) for item in body]
            case "tuple":
                return tuple(self.read(item) for item in body)
            case "set":
                return {self.read(item) for item in body}
            case "dict":
                return {self.read(key): self.read(value) for key, value in body}
            case "bytes":
                return b64decode(body[0], validate=True)
            case "array":
                return self.arrays[body[0]]
            case "scalar":
                return self.arrays[body[0]][()]
        (kind,) = (kind for kind in self.kinds if kind.tag == tag)
        return kind.from_plain(self.read(body[0]))
