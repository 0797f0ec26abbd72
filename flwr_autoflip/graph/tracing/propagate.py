"""How units flow through a model: labels, and the rules that move them.

Every tensor that takes part in the forward pass carries *labels*: one integer for
every index of every axis. Labels of parameters start out all different. A rule says
which labels must be the same unit (``couple``) or cannot be pruned (``freeze``), and
which labels the output carries. What remains apart in the end are the units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Axes = list[Labels]

FROZEN = 0


@dataclass
class Flow:
    """Labels of one tensor and where it comes from.

    Parameters
    ----------
    axes : list of ndarray
        Labels of each axis.
    source : tuple of (str, tuple of int), optional
        A parameter, and which of its axes each of these is.
    producers : frozenset of str (default: none)
        Weights whose layers put this out, as it is.
    """

    axes: Axes
    source: tuple[str, tuple[int, ...]] | None = None
    producers: frozenset[str] = frozenset()


@dataclass
class Units:
    """Union-find over labels; label 0 is everything that is always kept."""

    parent: list[int] = field(default_factory=lambda: [FROZEN])
    input_axes: set[tuple[str, int]] = field(default_factory=set)
    macs: dict[str, float] = field(default_factory=dict)
    normalized: set[str] = field(default_factory=set)

    def new(self, count: int) -> Labels:
        """Give ``count`` fresh labels."""
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, label: int) -> int:
        """Follow a label to the one that stands for its unit."""
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def couple(self, left: Labels, right: Labels) -> None:
        """Make labels one unit, pairwise; the smaller label stands for both."""
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = self.find(a), self.find(b)
            self.parent[max(a, b)] = min(a, b)

    def freeze(self, *axes: Labels) -> None:
        """Say that these indices are always kept."""
        for labels in axes:
            self.couple(labels, np.full(len(labels), FROZEN))

    def is_frozen(self, labels: Labels) -> bool:
        """Tell whether no index of an axis can be pruned."""
        return all(self.find(label) == FROZEN for label in labels.tolist())

    def consume(self, weight: Flow, axis: int, macs: float = 0.0) -> None:
        """Say that a weight's axis takes in units, at these MACs an element."""
        if weight.source is not None:
            name, axes = weight.source
            self.input_axes.add((name, axes[axis]))
            self.macs[name] = self.macs.get(name, 0.0) + macs


def fixed(length: int) -> Labels:
    """Labels of an axis that cannot be pruned."""
    return np.full(length, FROZEN)


@dataclass
class Call:
    """One operator at work: its arguments, labels and result."""

    units: Units
    flow_of: Callable[[Any], Flow]
    args: Sequence[Any]
    out: Any

    def flow(self, position: int) -> Flow:
        """Labels of a tensor argument."""
        return self.flow_of(self.args[position])

    def axes(self, position: int) -> Axes:
        """Copy of a tensor argument's labels."""
        return list(self.flow(position).axes)

    def couple(self, labels: Labels, *positions: int) -> None:
        """Make labels one unit with the first axes of these arguments, if they came."""
        for position in positions:
            if self.args[position] is not None:
                self.units.couple(labels, self.flow(position).axes[0])

    def arg(self, position: int, default: Any = None) -> Any:
        """Argument, or its default where the caller left it out."""
        return self.args[position] if len(self.args) > position else default


Rule = Callable[[Call], Flow | list[Flow]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of ATen operators, by name (``"convolution"``)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register
