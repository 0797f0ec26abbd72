"""What a node explored, as a file: one tensor in memory at a time."""

import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from ...errors import AutoFlipError, DamagedFileError, visible
from ...graph.storage import UNREADABLE, make_private, read_arrays, write_arrays

LOGGER = getLogger("flwr")
_NAME = re.compile(r"node-(-?\d+)\.safetensors")


@dataclass(frozen=True, eq=False)
class StoredReport(Mapping[str, NDArray[np.float32]]):
    """Tensor name to float32 array, read anew whenever it is looked up.

    Parameters
    ----------
    path : Path
    names : tuple of str
        In the report's order.
    checksum : str
    """

    path: Path
    names: tuple[str, ...]
    checksum: str

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """Read one tensor; raises ``DamagedFileError`` if the file is gone or cut."""
        if name not in self.names:
            raise KeyError(name)
        try:
            with safe_open(self.path, "numpy") as file:
                values: NDArray[np.float32] = file.get_tensor(name)
        except UNREADABLE as error:
            text = f"{self.path} cannot be read: {visible(str(error))}"
            raise DamagedFileError(text) from error
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def store_report(
    folder: Path | None, node: int, report: Mapping[str, NDArray[Any]]
) -> StoredReport:
    """Write a node's report; an earlier one of the same node is replaced.

    Parameters
    ----------
    folder : Path or None
        Made if it is missing. None is a private temporary folder that goes with what
        is returned.
    node : int
    report : mapping of str to ndarray

    Returns
    -------
    StoredReport

    Raises
    ------
    AutoFlipError
        If it cannot be written: that node counts as unexplored.
    """
    where = folder
    try:
        where = folder or Path(tempfile.mkdtemp(prefix="flwr-autoflip-"))
        make_private(where)
        path = where / f"node-{node}.safetensors"
        arrays = {n: np.asarray(v, np.float32) for n, v in report.items()}
        checksum = write_arrays(path, arrays, {"names": json.dumps([*arrays])})
    except OSError as error:
        if folder is None and where is not None:
            shutil.rmtree(where, ignore_errors=True)
        where = where or Path(tempfile.gettempdir())
        raise AutoFlipError(f"no report can be kept in {where}: {error}") from error
    stored = StoredReport(path, tuple(arrays), checksum)
    if folder is None:
        weakref.finalize(stored, shutil.rmtree, where, ignore_errors=True)
    return stored


def find_report(folder: Path, name: str, checksum: str) -> StoredReport | None:
    """Open a stored report's file again, and check all of it.

    None, and a line in the log, if it is missing, damaged or another one.
    """
    node, path = _NAME.fullmatch(name), folder / name
    try:
        if node is None:  # never a path
            raise DamagedFileError(f"{visible(name)!r} is no name of a report.")
        _, metadata = read_arrays(path)
        if metadata["checksum"] != checksum:
            raise DamagedFileError(f"{path} is not the file that was written.")
    except DamagedFileError as error:
        who = f"node {node[1]}" if node else "a node"
        LOGGER.warning("\t> %s counts as unexplored: %s", who, error)
        return None
    return StoredReport(path, tuple(json.loads(metadata["names"])), checksum)
