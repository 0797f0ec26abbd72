"""A folder of checkpoints: the newest, the one before, and what never changes.

::

    checkpoint-000007.safetensors    the newest
    checkpoint-000006.safetensors    the one before, until number 8 is complete
    3f2a...e1.safetensors            arrays written once, named by their content

A checkpoint is a tree of values (:mod:`.core.tree`): JSON in the file's metadata, and
its arrays. Every file has a checksum; none is a pickle.
"""

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from ..errors import AutoFlipError, AutoFlipWarning, DamagedFileError, visible
from ..graph.layout import Arrays
from ..graph.storage import make_private, read_arrays, write_arrays
from .tree import Kind, TreeReader, TreeWriter

T = TypeVar("T")
FORMAT = "flwr-autoflip checkpoint 1"
_UNREADABLE = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    RecursionError,
)
KEPT = 2
"""Whole checkpoints that stay."""


@dataclass
class CheckpointFolder:
    """Save and load numbered states.

    Parameters
    ----------
    path : Path
        Made when first written to.
    kinds : sequence of Kind (default: none)
        Types a state may hold beside :class:`.TreeWriter`'s own.
    """

    path: Path
    kinds: Sequence[Kind] = ()
    _names: dict[int, tuple[str, Arrays]] = field(default_factory=dict)

    def save(self, number: int, state: Any) -> None:
        """Write a checkpoint; the one before it stays, older ones go.

        Parameters
        ----------
        number : int
            At least 0. Numbers above it, left behind by a damaged file, go, too.
        state : object
        """
        make_private(self.path)
        writer = TreeWriter(self.kinds)
        text = json.dumps(writer.write(state))
        metadata = {"format": FORMAT, "state": text}
        write_arrays(self._file(number), writer.arrays, metadata)
        numbers = self._numbers()
        outdated = [n for n in numbers if n > number]
        outdated += [n for n in numbers if n <= number][:-KEPT]
        for old in outdated:
            self._file(old).unlink()

    def load(self, complete: Callable[[Any], T]) -> T | None:
        """Load the newest whole checkpoint.

        Parameters
        ----------
        complete : callable
            Reads what the state refers to, and gives what is wanted; may raise
            ``DamagedFileError``.

        Returns
        -------
        what ``complete`` gave, or None
            None if nothing was saved here.

        Raises
        ------
        AutoFlipError
            If there are checkpoints, but not one is whole.

        Warns
        -----
        AutoFlipWarning
            For each damaged one that was passed over.
        """
        faults = []
        for number in reversed(self._numbers()):
            try:
                whole = complete(self._read(number))
            except DamagedFileError as error:
                faults.append(str(error))
                continue
            for fault in faults:
                text = f"{fault} Going on from the checkpoint before it."
                warnings.warn(text, AutoFlipWarning, stacklevel=4)
            return whole
        if faults:
            raise AutoFlipError(
                f"{self.path} holds no whole checkpoint: {' '.join(faults)} Mend it, "
                "or delete the folder to start over."
            )
        return None

    def _read(self, number: int) -> Any:
        path = self._file(number)
        arrays, metadata = read_arrays(path)
        if metadata.get("format") != FORMAT:
            raise AutoFlipError(
                f"{path}: expected format {FORMAT!r}, got {metadata.get('format')!r}; "
                "use the flwr-autoflip that wrote it, or another folder."
            )
        try:
            return TreeReader(arrays, self.kinds).read(json.loads(metadata["state"]))
        except _UNREADABLE as error:
            raise DamagedFileError(
                f"{path} holds no state: {visible(str(error))}"
            ) from error

    # --- What never changes ---

    def keep(self, arrays: Arrays) -> str:
        """Write arrays once, however often they are given.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            They must not change after this.

        Returns
        -------
        str
            Their name, for :meth:`kept`.
        """
        if id(arrays) not in self._names:
            make_private(self.path)
            name = _name_of(arrays)
            path = self.path / f"{name}.safetensors"
            if not path.exists():
                write_arrays(path, arrays, {"format": FORMAT, "order": _order(arrays)})
            self._names[id(arrays)] = (
                name,
                arrays,
            )  # as long as it lives, so does its id
        return self._names[id(arrays)][0]

    def kept(self, name: str) -> dict[str, Any]:
        """Read what :meth:`keep` wrote, and remember that it is there.

        Raises
        ------
        DamagedFileError
            If the file is damaged or lost.
        """
        if re.fullmatch("[0-9a-f]{32}", name) is None:  # never a path
            raise DamagedFileError(f"{name!r} is no name of arrays in {self.path}.")
        found, metadata = read_arrays(self.path / f"{name}.safetensors")
        arrays = {key: found[key] for key in json.loads(metadata["order"])}
        self._names[id(arrays)] = name, arrays
        return arrays

    def _file(self, number: int) -> Path:
        return self.path / f"checkpoint-{number:06}.safetensors"

    def _numbers(self) -> list[int]:
        names = [path.name for path in self.path.glob("checkpoint-*.safetensors")]
        found = [re.fullmatch(r"checkpoint-(\d+)\.safetensors", name) for name in names]
        return sorted(int(match[1]) for match in found if match)


def _order(arrays: Arrays) -> str:
    return json.dumps(list(arrays))


def _name_of(arrays: Arrays) -> str:
    digest = blake2b(digest_size=16)
    for name, array in arrays.items():
        digest.update(repr((name, array.dtype.name, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
