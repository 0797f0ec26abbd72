"""One explorer's report as a file: 16 bits a coordinate, read a chunk at a time.

======================  =============================================================
bytes                   meaning
======================  =============================================================
8                       ``AFLIPGUI``
4                       version, 2; little endian, as all numbers
4                       length of the next, a multiple of 8
varies                  JSON: layout's digest, node, dtype, scale, tensors' names,
                        shapes and mean deviations, CRC-32 of all that and the values;
                        then spaces
2 a coordinate          ``sqrt(deviation) * scale`` as float16, tensor after tensor
======================  =============================================================

An explorer sends its update in float16, times a power of two. Its size is kept as it
came: nothing is lost by a file.
"""

import json
import mmap
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DamagedFileError, visible
from ..graph.storage import write_whole
from ..methods.statistics import ChunkedReport, Report, in_chunks, parts, size_of
from ..wire.encoding import half_scale

MAGIC = b"AFLIPGUI"
VERSION = 2
_START = struct.Struct("<8sII")
_DTYPE = np.dtype("<f2")
_UNREADABLE = (
    *(OSError, struct.error, ValueError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, RecursionError),
)


class StoredReport(ChunkedReport):
    """A report in a file; its arrays are float32 and made anew whenever asked for.

    Parameters
    ----------
    path : Path
    head : bytes
        All that stands before the values.

    Attributes
    ----------
    home : object
        What has to live as long as the file is wanted, such as a temporary folder.
    """

    home: object = None

    def __init__(self, path: Path, head: bytes) -> None:
        self.path, self.head = path, head
        about = json.loads(head[_START.size :])
        self.checksum = int(about["checksum"])
        self.shapes = {name: tuple(shape) for name, shape, _ in about["tensors"]}
        self._means = {name: float(mean) for name, _, mean in about["tensors"]}
        self.begun = _begin_checksum(about)
        self._factor = 1.0 / float(about["scale"])
        self._first, self.size = {}, 0
        for name, shape in self.shapes.items():
            self._first[name] = self.size
            self.size += size_of(shape)

    def read(self, name: str, part: slice) -> NDArray[np.float32]:
        """Read coordinates ``part.start`` to ``part.stop`` of a flat tensor."""
        first = self._first[name]
        half = torch.from_numpy(self._map(first + part.start, first + part.stop))
        # PyTorch widens halves several times as fast as NumPy.
        wide: NDArray[np.float32] = half.float().mul_(self._factor).square_().numpy()
        return wide

    def mean(self, name: str) -> float:
        """Give the mean of a tensor's coordinates, as it was when they came."""
        return self._means[name]

    def _map(self, start: int, stop: int) -> NDArray[np.float16]:
        """Map coordinates for a moment; what is written to them stays in memory.

        So a thousand files stay within the limit of open ones, and little of them
        counts as resident. ``np.memmap`` takes several times as long to begin.
        """
        if start == stop:
            return np.zeros(0, np.float16)
        first = len(self.head) + start * _DTYPE.itemsize
        inside = first % mmap.ALLOCATIONGRANULARITY
        length = inside + (stop - start) * _DTYPE.itemsize
        with open(self.path, "rb", buffering=0) as file:
            mapped = mmap.mmap(
                file.fileno(), length, access=mmap.ACCESS_COPY, offset=first - inside
            )
        return np.frombuffer(mapped, _DTYPE, stop - start, inside)

    def check(self, values: bool = True) -> None:
        """Check that the file is still the one that was written.

        Parameters
        ----------
        values : bool (default: True)
            Read all of it; otherwise only its beginning and its length.

        Raises
        ------
        DamagedFileError
            If it is missing, another one, cut short or changed.
        """
        expected = len(self.head) + self.size * _DTYPE.itemsize
        try:
            with self.path.open("rb") as file:
                head = file.read(len(self.head))
            length = self.path.stat().st_size
        except OSError as error:
            raise DamagedFileError(f"{self.path} cannot be read: {error}") from error
        if head != self.head:
            raise DamagedFileError(f"{self.path} is not the file that was written.")
        if length != expected:
            raise DamagedFileError(
                f"{self.path} has {length} bytes, expected {expected}."
            )
        if values and self._checksum_of_values() != self.checksum:
            raise DamagedFileError(f"{self.path} does not have its checksum.")

    def _checksum_of_values(self) -> int:
        found = self.begun
        for part in parts(self.size, 1 << 20):
            found = zlib.crc32(self._map(part.start, part.stop).data, found)
        return found


def write_report(path: Path, report: Report, layout: bytes, node: int) -> StoredReport:
    """Write a report, wholly or not at all.

    Parameters
    ----------
    path : Path
    report : Report
        Float32, finite, at least 0.
    layout : bytes
        The layout's digest.
    node : int

    Returns
    -------
    StoredReport

    Raises
    ------
    OSError
        If the folder cannot be written or is full; nothing is left behind.
    """
    chunked = in_chunks(report)
    scale = half_scale(max(_largest_root(chunked, name) for name in chunked))
    values = np.empty(sum(map(size_of, chunked.shapes.values())), _DTYPE)
    first, tensors = 0, []
    for name, shape in chunked.shapes.items():
        for part in parts(size_of(shape)):
            root = np.sqrt(chunked.read(name, part), dtype=np.float32)
            here = slice(first + part.start, first + part.stop)
            values[here] = root * np.float32(scale)
        first += size_of(shape)
        tensors.append((name, list(shape), chunked.mean(name)))
    about = {
        "layout": layout.hex(),
        "node": node,
        "dtype": "float16",
        "scale": scale,
        "tensors": tensors,
    }
    about["checksum"] = zlib.crc32(values.data, _begin_checksum(about))
    text = json.dumps(about).encode()
    text += b" " * (-len(text) % 8)
    head = _START.pack(MAGIC, VERSION, len(text)) + text
    write_whole(path, head, values.data)
    return StoredReport(path, head)


def _begin_checksum(about: dict[str, Any]) -> int:
    """Give the CRC-32 of what a file says of its values, which follow."""
    rest = {key: value for key, value in about.items() if key != "checksum"}
    return zlib.crc32(json.dumps(rest).encode())


def _largest_root(report: ChunkedReport, name: str) -> float:
    sizes = parts(size_of(report.shapes[name]))
    return float(np.sqrt(max((report.read(name, p).max() for p in sizes), default=0)))


def open_report(path: Path, layout: bytes, node: int, checksum: int) -> StoredReport:
    """Open what :func:`write_report` wrote, and check all of it.

    Parameters
    ----------
    path : Path
    layout : bytes
    node : int
    checksum : int
        Of the values, as it was told when they were written.

    Raises
    ------
    DamagedFileError
        If it is missing, cut short, changed, another model's or another node's.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_START.size)
            magic, version, length = _START.unpack(start)
            if (magic, version) != (MAGIC, VERSION):
                raise DamagedFileError(
                    f"{path} is no guidance file of version {VERSION}."
                )
            if length > path.stat().st_size:
                raise DamagedFileError(f"{path} is cut short.")
            head = start + file.read(length)
        report = StoredReport(path, head)
        about = json.loads(head[_START.size :])
        found = about["layout"], about["node"], report.checksum
    except DamagedFileError:
        raise
    except _UNREADABLE as error:
        raise DamagedFileError(
            f"{path} cannot be read: {visible(str(error))}"
        ) from error
    if found != (layout.hex(), node, checksum):
        raise DamagedFileError(f"{path} is not the file that was written.")
    report.check()
    return report
