"""Files that are whole or not there, and that say when they are damaged."""

import os
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import DamagedFileError, visible
from .layout import Arrays

UNREADABLE = (SafetensorError, OSError, ValueError, TypeError, AttributeError)
"""What reading a damaged or foreign safetensors file raises; the last two come of
dtypes that NumPy lacks."""

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""Flag of ``os.open`` that refuses links; Windows has none."""


def make_private(folder: Path) -> None:
    """Make a folder, and missing ones above it, that its owner alone can open.

    One that exists is left as it is. Raises ``OSError`` if it cannot be made.
    """
    for each in (*reversed(folder.parents), folder):
        if not each.is_dir():
            each.mkdir(0o700, exist_ok=True)
            each.chmod(0o700)  # the umask may have taken the owner's rights


def open_private(path: Path, mode: Literal["xb", "ab"]) -> BinaryIO:
    """Open a file to write, never through a link; a new one is its owner's alone."""

    def opener(name: str, flags: int) -> int:
        handle = os.open(name, flags | _NO_FOLLOW, 0o600)
        if mode == "xb" and os.name == "posix":
            os.fchmod(handle, 0o600)  # as above
        return handle

    return open(path, mode, opener=opener)


def write_whole(path: Path, *data: bytes | memoryview, private: bool = True) -> None:
    """Write a file so that any reader, also after a power cut, finds all or nothing.

    An old file stays until the new one is complete; a link is replaced, what it points
    to stays. Only its owner can read it if ``private``, otherwise whoever the umask
    says. After ``OSError``, such as on a full disk, what was begun is removed.
    """
    # A name that nobody can foretell, and that must not exist: whoever can write into
    # the folder cannot have us write elsewhere.
    partial = path.with_name(f"{path.name}.{token_hex(8)}.partial")
    try:
        with open_private(partial, "xb") if private else open(partial, "xb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # make the rename last
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_arrays(path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> str:
    """Write arrays and texts as safetensors; give the checksum of all of it.

    Arrays hold numbers or bools; no text is called ``"checksum"``.
    """
    # safetensors writes memory as it lies, so an array that is not in C order would
    # come back transposed.
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    checksum = _checksum(ordered, metadata)
    write_whole(path, save(ordered, {**metadata, "checksum": checksum}))
    return checksum


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read what :func:`write_arrays` wrote: arrays, and texts with the checksum.

    Raises ``DamagedFileError`` if the file is missing, cut short, or a single bit of
    its content changed.
    """
    try:
        arrays, metadata = read_safetensors(path)
    except UNREADABLE as error:
        text = f"{path} cannot be read: {visible(str(error))}"
        raise DamagedFileError(text) from error
    texts = {name: text for name, text in metadata.items() if name != "checksum"}
    if metadata.get("checksum") != _checksum(arrays, texts):
        raise DamagedFileError(f"{path} does not have its checksum.")
    return arrays, metadata


def read_safetensors(
    path: Path,
) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    """Read arrays and texts, or raise one of :data:`UNREADABLE`."""
    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc":  # another package may have taught NumPy it
            raise TypeError(f"{name} is of dtype {array.dtype}.")
    return arrays, metadata


def _checksum(arrays: Arrays, metadata: Mapping[str, str]) -> str:
    digest = blake2b(repr(sorted(metadata.items())).encode(), digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(repr((name, array.dtype.name, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
