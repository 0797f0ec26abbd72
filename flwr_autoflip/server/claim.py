"""A run's folders: one run at a time, for their owner alone, without leftovers."""

import os
import re
import stat
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import AutoFlipError, AutoFlipWarning
from ..graph.storage import NO_FOLLOW, make_private

LOCK = "autoflip.lock"
"""Name of the file that says whose a folder is; it stays when a run is over."""

GUIDANCE = "guidance"
"""Folder for explorers' reports, beside the checkpoints."""

_OURS = re.compile(
    r"(?:(?:checkpoint-\d+|[0-9a-f]{32})\.safetensors|ledger\.jsonl|node-\d+\.guidance)"
    r"(?P<partial>(?:\.[0-9a-f]{16})?\.partial)?"
)


@contextmanager
def claimed(folders: Iterable[Path]) -> Iterator[None]:
    """Hold folders for a run; they are made, and what earlier runs left is taken away.

    The operating system ends a claim with its process, however that ends.

    Parameters
    ----------
    folders : iterable of Path
        One may stand there twice.

    Raises
    ------
    AutoFlipError
        If another run holds one of them, or one cannot be written.

    Warns
    -----
    AutoFlipWarning
        If one lies where nothing can be locked, such as some network file systems.
    """
    with ExitStack() as stack:
        for folder in {folder.resolve(): folder for folder in folders}.values():
            stack.enter_context(_locked(folder))
            _tidy(folder)
            if not (folder / GUIDANCE).is_symlink():
                _tidy(folder / GUIDANCE)
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        make_private(folder)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o600)
        if os.name == "posix":
            os.fchmod(handle, 0o600)
    except OSError as error:
        raise AutoFlipError(
            f"{folder} cannot be used by a run: {error}; give it a folder of its own."
        ) from error
    try:
        if _lock(handle, folder):
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        with suppress(OSError):
            _unlock(handle)  # closing is not enough while a forked process has it too
        os.close(handle)


def _lock(handle: int, folder: Path) -> bool:
    """Lock a file; give False where files cannot be locked."""
    try:
        _lock_now(handle)
    except (BlockingIOError, PermissionError) as error:
        owner = os.read(handle, 20).strip()
        who = f"process {owner.decode()}" if owner.isdigit() else "a process"
        raise AutoFlipError(
            f"{folder} is in use by another run ({who}): wait for its end, stop it, or "
            "give this run a folder of its own."
        ) from error
    except OSError as error:
        warnings.warn(
            f"{folder} cannot be locked ({error}); see that only one run uses it.",
            AutoFlipWarning,
            stacklevel=2,
        )
        return False
    return True


if sys.platform == "win32":
    import msvcrt

    def _at(handle: int, kind: int) -> None:
        os.lseek(handle, 1 << 20, os.SEEK_SET)  # far behind what others want to read
        try:
            msvcrt.locking(handle, kind, 1)
        finally:
            os.lseek(handle, 0, os.SEEK_SET)

    def _lock_now(handle: int) -> None:
        _at(handle, msvcrt.LK_NBLCK)

    def _unlock(handle: int) -> None:
        _at(handle, msvcrt.LK_UNLCK)
else:
    import fcntl

    def _lock_now(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)


def _tidy(folder: Path) -> None:
    """Remove partial files of runs that were killed; make the other files private.

    Only files with a run's names; a link, and what it points to, stays.
    """
    for path in folder.glob("*"):
        found = _OURS.fullmatch(path.name)
        if found is None or not stat.S_ISREG(path.lstat().st_mode):
            continue
        if found["partial"]:
            path.unlink(missing_ok=True)
        elif os.name == "posix":
            handle = os.open(path, os.O_RDONLY | NO_FOLLOW)
            try:
                os.fchmod(handle, 0o600)
            finally:
                os.close(handle)
