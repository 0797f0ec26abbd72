"""Python values <-> JSON and arrays: what a checkpoint is made of, no pickle.

``None``, bools, numbers and texts stand for themselves. Everything else is a list that
begins with a tag: ``["list", ...]``, ``["array", name]``. An object met twice is
``["same", n]``, the n-th that was finished, so that it is one object again when read.
"""

import random
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from numpy.typing import NDArray

from ...errors import AutoFlipError
from ...graph.codec import decode_plan, encode_plan, layout_digest
from ...graph.layout import Layout
from ...graph.plan import Plan
from ...methods.base import State
from .deviations import StoredReport, find_report

T = TypeVar("T")
_BITS = {
    kind.__name__: kind
    for kind in (
        *(np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM),
        *(np.random.Philox, np.random.SFC64),
    )
}


def _random_from(state: tuple[Any, ...]) -> random.Random:
    generator = random.Random()
    generator.setstate(state)
    return generator


def _generator_from(state: dict[str, Any]) -> np.random.Generator:
    generator = np.random.Generator(_BITS[state["bit_generator"]]())
    generator.bit_generator.state = state
    return generator


_KINDS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tuple": (tuple, list, tuple),
    "set": (set, list, set),
    "bytes": (bytes, lambda data: b64encode(data).decode(), b64decode),
    "arrays": (
        ArrayRecord,
        lambda record: {name: array.numpy() for name, array in record.items()},
        lambda arrays: ArrayRecord({name: Array(a) for name, a in arrays.items()}),
    ),
    "metrics": (MetricRecord, dict, MetricRecord),
    "config": (ConfigRecord, dict, ConfigRecord),
    "tensor": (torch.Tensor, lambda t: t.detach().cpu().numpy(), torch.from_numpy),
    "random": (random.Random, random.Random.getstate, _random_from),
    "generator": (
        np.random.Generator,
        lambda generator: generator.bit_generator.state,
        _generator_from,
    ),
}
"""Tag to a type, what turns it into simpler values, and the inverse."""

_TAGS = {kind: tag for tag, (kind, _, _) in _KINDS.items()}
_LOST: Any = object()
"""Stands for a report whose file is not whole."""


@dataclass
class Tree:
    """Write values as JSON's types and arrays, or read them, in the same order.

    Plans and layouts are of ``layout``, stored reports lie in the folder ``reports``;
    ``noisy`` refuses generators. Arrays are called ``"0"``, ``"1"``, ...
    """

    layout: Layout | None = None
    reports: Path | None = None
    noisy: bool = False
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    # The objects themselves are kept: ids of freed objects are used again.
    _finished: list[Any] = field(default_factory=list)
    _places: dict[int, int] = field(default_factory=dict)

    def write(self, value: Any) -> Any:
        """Give the JSON of lists, dicts, and what :data:`_KINDS` names, nested anyhow.

        Raises ``TypeError`` on any other type, a subclass among them, and
        ``RecursionError`` on a value that holds itself.
        """
        if value is None or type(value) in (bool, int, float, str):
            return value
        if id(value) in self._places:
            return ["same", self._places[id(value)]]
        written = self._write(value)
        self._places[id(value)] = len(self._finished)
        self._finished.append(value)
        return written

    def _write(self, value: Any) -> list[Any]:
        kind = type(value)
        if kind is list:
            return ["list", *map(self.write, value)]
        if kind is dict:
            return ["dict", *([self.write(k), self.write(v)] for k, v in value.items())]
        if kind is np.ndarray or isinstance(value, np.generic):
            array = np.asarray(value)
            if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
                raise TypeError(f"an array of {array.dtype}")
            self.arrays[name := f"{len(self.arrays)}"] = array
            return ["array" if kind is np.ndarray else "scalar", name]
        if kind is Plan and self._is_own(value.layout):
            return ["plan", self.write(encode_plan(value))]
        if kind is Layout and self._is_own(value):
            return ["layout"]
        if kind is StoredReport and value.path.parent == self.reports:
            return ["report", value.path.name, value.checksum]
        tag = _TAGS.get(kind)
        if tag is None or (self.noisy and tag in ("random", "generator")):
            raise TypeError(kind.__name__)
        return [tag, self.write(_KINDS[tag][1](value))]

    def _is_own(self, layout: Layout) -> bool:
        own = self.layout
        return own is not None and layout_digest(layout) == layout_digest(own)

    def read(self, written: Any) -> Any:
        """Give the value that was written; a dict without reports that are not whole.

        Raises any of Python's errors on what was never written.
        """
        if not isinstance(written, list):
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
            case "dict":
                pairs = [(self.read(key), self.read(value)) for key, value in body]
                return {key: value for key, value in pairs if value is not _LOST}
            case "array":
                return self.arrays[body[0]]
            case "scalar":
                return self.arrays[body[0]][()]
            case "plan" if self.layout:
                return decode_plan(self.read(body[0]), self.layout)
            case "layout":
                return self.layout
            case "report" if self.reports:
                found = find_report(self.reports, *body)
                return _LOST if found is None else found
        return _KINDS[tag][2](self.read(body[0]))

    def write_fields(self, state: Any) -> list[Any]:
        """Write a dataclass by its fields; those that are a method's state, too.

        Raises ``AutoFlipError``, with its name, if one holds what a tree cannot.
        """
        written = []
        for name in (each.name for each in fields(state)):
            value = getattr(state, name)
            write = self.write_fields if isinstance(value, State) else self.write
            try:
                written.append([name, write(value)])
            except (TypeError, RecursionError) as error:
                raise AutoFlipError(
                    f"a checkpoint cannot hold the field {name!r} of "
                    f"{type(state).__name__}: {error}"
                ) from error
        return written

    def read_fields(self, written: Any, like: T) -> T:
        """Read :meth:`write_fields` into a dataclass of the same fields."""
        found: dict[str, Any] = {}
        for name, body in written:
            own = getattr(like, name)
            inside = isinstance(own, State)
            found[name] = self.read_fields(body, own) if inside else self.read(body)
        return replace(like, **found)  # type: ignore[type-var]


def is_storable(value: Any, noisy: bool = False) -> bool:
    """Tell whether a tree can hold a value."""
    try:
        Tree(noisy=noisy).write(value)
    except (TypeError, RecursionError):
        return False
    return True
