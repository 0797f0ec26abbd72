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
from ...graph import storage

LOGGER = getLogger("flwr")
_NAME = re.compile(r"node-(-?\d+)\.safetensors")


@dataclass(frozen=True, eq=False)
class StoredReport(Mapping[str, NDArray[np.float32]]):
    """Tensor name to float32 array, in the report's order, read at every lookup.

    A lookup raises ``DamagedFileError`` if the file is missing or cut short.
    """

    path: Path
    names: tuple[str, ...]
    checksum: str

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self.names:
            raise KeyError(name)
        try:
            with safe_open(self.path, "numpy") as file:
                values: NDArray[np.float32] = file.get_tensor(name)
        except storage.UNREADABLE as error:
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
    """Write a node's report in place of an earlier one.

    Without a folder it lies in a private temporary one that goes with what is returned.
    Raises ``AutoFlipError`` if it cannot be written: that node counts as unexplored.
    """
    own = None
    try:
        if folder is None:
            own = tempfile.mkdtemp(prefix="flwr-autoflip-")
        path = Path(own or str(folder), f"node-{node}.safetensors")
        storage.make_private(path.parent)
        arrays = {n: np.asarray(v, np.float32) for n, v in report.items()}
        names = {"names": json.dumps([*arrays])}
        checksum = storage.write_arrays(path, arrays, names)
    except OSError as error:
        where = folder or own or tempfile.gettempdir()
        if own:
            shutil.rmtree(own, ignore_errors=True)
        raise AutoFlipError(f"no report can be kept in {where}: {error}") from error
    stored = StoredReport(path, tuple(arrays), checksum)
    if own:
        weakref.finalize(stored, shutil.rmtree, own, ignore_errors=True)
    return stored


def find_report(folder: Path, name: str, checksum: str) -> StoredReport | None:
    """Open a report's file again, and check all of it.

    None, and a line in the log, if it is missing, damaged or another one.
    """
    node, path = _NAME.fullmatch(name), folder / name
    try:
        if node is None:  # never a path
            raise DamagedFileError(f"{visible(name)!r} is no name of a report.")
        _, metadata = storage.read_arrays(path)
        if metadata["checksum"] != checksum:
            raise DamagedFileError(f"{path} is not the file that was written.")
    except DamagedFileError as error:
        who = f"node {node[1]}" if node else "a node"
        LOGGER.warning("\t> %s counts as unexplored: %s", who, error)
        return None
    return StoredReport(path, tuple(json.loads(metadata["names"])), checksum)
