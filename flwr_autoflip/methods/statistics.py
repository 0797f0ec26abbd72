"""What Eq. 10 needs of many reports: sums and extremes, a chunk at a time.

With ``scaled`` every report counts alike in every tensor: its deviations are divided by
their mean, so that no explorer decides by its scale.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from .robust import trimmed_mean

Report = Mapping[str, NDArray[np.floating]]
"""Deviations of one explorer by tensor (or group) name, float32, not negative.

Where a policy probes, also squared gradients of a round, float64.
"""

CHUNK = 1 << 18
"""Coordinates that are worked on at once: 1 MB of float32."""

STACK = 32 * CHUNK
"""Coordinates of all reports together that are sorted at once: 32 MB of float32."""


class ChunkedReport(Mapping[str, NDArray[np.floating]]):
    """A report that can be read in parts.

    Attributes
    ----------
    shapes : mapping of str to tuple of int
        Of its tensors, in order.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @abstractmethod
    def read(self, name: str, part: slice) -> NDArray[np.floating]:
        """Read coordinates ``part.start`` to ``part.stop`` of a flat tensor."""

    def mean(self, name: str) -> float:
        """Give the mean of a tensor's coordinates; 0 if it has none."""
        size = size_of(self.shapes[name])
        total = sum(add_up(self.read(name, part)) for part in parts(size))
        return total / size if size else 0.0

    def __getitem__(self, name: str) -> NDArray[np.floating]:
        shape = self.shapes[name]
        return self.read(name, slice(0, size_of(shape))).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class _InMemory(ChunkedReport):
    def __init__(self, report: Report) -> None:
        self.report = report
        self.shapes = {name: values.shape for name, values in report.items()}

    def read(self, name: str, part: slice) -> NDArray[np.floating]:
        return self.report[name].reshape(-1)[part]


def in_chunks(report: Report) -> ChunkedReport:
    """Give a report that can be read in parts: itself, or a view of its arrays."""
    return report if isinstance(report, ChunkedReport) else _InMemory(report)


def size_of(shape: tuple[int, ...]) -> int:
    """Count the coordinates of a shape; 1 for ``()``."""
    return int(np.prod(shape, dtype=np.int64))


def parts(size: int, length: int | None = None) -> Iterator[slice]:
    """Cut ``size`` coordinates into chunks of ``length``, or of :data:`CHUNK`."""
    length = CHUNK if length is None else length
    for start in range(0, size, length):
        yield slice(start, min(start + length, size))


def add_up(values: NDArray[Any]) -> float:
    """Add values up in float64."""
    return float(values.sum(dtype=np.float64))


def _scale_of(report: ChunkedReport, name: str, scaled: bool) -> np.float32:
    """Give what a tensor's deviations are multiplied by: to mean 1, or 1."""
    mean = report.mean(name) if scaled else 0.0
    return np.float32(min(1 / mean, 1e30) if mean > 0 else 1)


def _read(
    report: ChunkedReport, name: str, part: slice, scale: np.float32
) -> NDArray[np.floating]:
    values = report.read(name, part)
    return values if scale == 1 else values * scale


class Spread(NamedTuple):
    """Sum (float64), lowest and highest of a chunk's coordinates over reports."""

    part: slice
    total: NDArray[np.float64]
    low: NDArray[np.floating]
    high: NDArray[np.floating]


class Statistics:
    """Statistics of reports that are there; one pass over them a tensor.

    Parameters
    ----------
    reports : sequence of Report
        At least one, all with the same names and shapes.
    scaled : bool (default: False)
        Bring every report's tensors to mean 1 first.
    trim : float (default: 0)
        Sums are those of :func:`.robust.trimmed_mean`, times the number of reports.
    """

    def __init__(
        self, reports: Sequence[Report], scaled: bool = False, trim: float = 0.0
    ) -> None:
        self.reports = [in_chunks(report) for report in reports]
        self.scaled, self.trim = scaled, trim

    @property
    def count(self) -> int:
        """Number of reports."""
        return len(self.reports)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name to shape, of every report."""
        return self.reports[0].shapes

    def totals(self, name: str) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Give sums of a tensor's coordinates, chunk by chunk; not to be changed."""
        for part, values in self._chunks(name):
            if self.trim:
                yield part, trimmed_mean(np.stack([*values]), self.trim) * self.count
                continue
            total = np.zeros(part.stop - part.start)
            for one in values:
                total += one
            yield part, total

    def spreads(self, name: str) -> Iterator[Spread]:
        """Give sum, lowest and highest of a tensor's coordinates, chunk by chunk."""
        for part, values in self._chunks(name):
            if self.trim:
                stack = np.stack([*values])
                total = trimmed_mean(stack, self.trim) * self.count
                yield Spread(part, total, stack.min(axis=0), stack.max(axis=0))
                continue
            low = np.array(next(values))
            high, total = low.copy(), low.astype(np.float64)
            for one in values:
                total += one
                np.minimum(low, one, out=low)
                np.maximum(high, one, out=high)
            yield Spread(part, total, low, high)

    def _chunks(
        self, name: str
    ) -> Iterator[tuple[slice, Iterator[NDArray[np.floating]]]]:
        """Give every chunk with its values in all reports, one after the other."""
        scales = [_scale_of(report, name, self.scaled) for report in self.reports]
        length = max(1, min(CHUNK, STACK // self.count)) if self.trim else CHUNK
        for part in parts(size_of(self.shapes[name]), length):
            pairs = zip(self.reports, scales, strict=True)
            yield part, (_read(report, name, part, scale) for report, scale in pairs)


@dataclass(frozen=True)
class Running:
    """What is kept of all reports as they come: sums, of which kind.

    Parameters
    ----------
    extremes, scaled : bool
        As in :class:`RunningStatistics`.
    """

    extremes: bool
    scaled: bool


@dataclass
class RunningStatistics:
    """Statistics that grow as reports come, and keep no report.

    Adds in the order of :class:`Statistics`, so both agree to the last bit.

    Parameters
    ----------
    extremes : bool
        Keep lowest and highest, too: 16 bytes a coordinate instead of 8.
    scaled : bool (default: False)
        Bring every report's tensors to mean 1 first.
    """

    extremes: bool
    scaled: bool = False
    count: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _totals: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    _lows: dict[str, NDArray[np.floating]] = field(default_factory=dict)
    _highs: dict[str, NDArray[np.floating]] = field(default_factory=dict)

    def add(self, report: Report) -> None:
        """Take a report in."""
        chunked = in_chunks(report)
        if not self.count:
            self.shapes = dict(chunked.shapes)
            self._begin()
        self.count += 1
        for name, total in self._totals.items():
            scale = _scale_of(chunked, name, self.scaled)
            for part in parts(total.size):
                values = _read(chunked, name, part, scale)
                total[part] += values
                if self.extremes:
                    low, high = self._lows[name][part], self._highs[name][part]
                    np.minimum(low, values, out=low)
                    np.maximum(high, values, out=high)

    def _begin(self) -> None:
        sizes = {name: size_of(shape) for name, shape in self.shapes.items()}
        self._totals = {name: np.zeros(size) for name, size in sizes.items()}
        if self.extremes:
            self._lows = {n: np.full(s, np.inf, np.float32) for n, s in sizes.items()}
            self._highs = {n: np.zeros(s, np.float32) for n, s in sizes.items()}

    def totals(self, name: str) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Give sums of a tensor's coordinates, chunk by chunk; not to be changed."""
        total = self._totals[name]
        for part in parts(total.size):
            yield part, total[part]

    def spreads(self, name: str) -> Iterator[Spread]:
        """Give sum, lowest and highest of a tensor's coordinates, chunk by chunk."""
        total, low, high = self._totals[name], self._lows[name], self._highs[name]
        for part in parts(total.size):
            yield Spread(part, total[part], low[part], high[part])


@dataclass(frozen=True)
class SummedReports(Sequence[Report]):
    """Reports whose statistics are known: a plan of all needs no pass over them.

    Parameters
    ----------
    reports : sequence of Report
        Read only when asked for one by one.
    statistics : RunningStatistics
        Theirs.
    """

    reports: Sequence[Report]
    statistics: RunningStatistics

    @overload
    def __getitem__(self, index: int) -> Report: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Report]: ...
    def __getitem__(self, index: Any) -> Any:
        return self.reports[index]

    def __len__(self) -> int:
        return len(self.reports)


def statistics_of(
    reports: Sequence[Report],
    extremes: bool,
    scaled: bool = False,
    trim: float = 0.0,
) -> Statistics | RunningStatistics:
    """Give statistics of reports: those that are known, or of a pass over them.

    Parameters
    ----------
    reports : sequence of Report
    extremes : bool
        Whether lowest and highest are wanted.
    scaled : bool (default: False)
    trim : float (default: 0)
        As in :class:`Statistics`.
    """
    if isinstance(reports, SummedReports) and not trim:
        known = reports.statistics
        if known.scaled == scaled and (known.extremes or not extremes):
            return known
    return Statistics(reports, scaled, trim)
