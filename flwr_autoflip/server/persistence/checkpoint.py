"""A run's folder: its newest checkpoint, the one before, and one run at a time.

A checkpoint is a tree of values (:mod:`.tree`): JSON in the file's metadata, and its
arrays. Every file has a checksum; none is a pickle.
"""

import errno
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from logging import INFO, getLogger
from pathlib import Path
from random import getstate, setstate
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from flwr.serverapp.strategy import Strategy

from ...errors import AutoFlipError, AutoFlipWarning, DamagedFileError, visible
from ...graph.codec import layout_digest
from ...graph.layout import Layout
from ...graph.storage import UNREADABLE, make_private, read_arrays, write_arrays
from ...ledger.ledger import Ledger, Mark
from ..state import RunState
from .inner import attributes_of, restore_inplace, seed_anew, warn_unsaved
from .tree import TreeReader, TreeWriter

LOGGER = getLogger("flwr")
FORMAT = "flwr-autoflip checkpoint 2"
LOCK, REPORTS = "autoflip.lock", "reports"
_UNREADABLE = (*UNREADABLE, LookupError, ArithmeticError, RecursionError)
_FILES = "checkpoint-[0-9][0-9][0-9][0-9][0-9][0-9].safetensors"
_PARTIAL = re.compile(
    r"(?:(?:checkpoint-\d+|node--?\d+)\.safetensors|ledger\.jsonl)"
    r"\.[0-9a-f]{16}\.partial"
)
_NEW_NOISE = (
    "noise may be drawn in this run, so generators are seeded anew; figures differ "
    "from those of a run that was never stopped"
)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class Checkpoints:
    """Checkpoints of one run in a folder, of which the last two are kept.

    Parameters
    ----------
    path : Path
        Made when first written to; see :func:`claimed`.
    settings : mapping of str to str
        Name to text: what makes it this run and no other, beside the model.
    layout : Layout
        The model's, and every plan's.
    noisy : bool
        Whether noise may be drawn in this run; no file then holds a generator.

    Attributes
    ----------
    reports : Path
        Folder for reports that a state may hold; see :func:`.store_report`.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, str], layout: Layout, noisy: bool
    ) -> None:
        self.path, self.layout, self.noisy = path, layout, noisy
        self.settings = {"model": layout_digest(layout).hex(), **settings}
        self.reports = path / REPORTS
        self._number = 0

    def save(self, state: RunState, strategy: Strategy, ledger: Ledger) -> None:
        """Write a checkpoint, wholly or not at all; the one before it stays.

        Parameters
        ----------
        state : RunState
            ``inner`` is filled in.
        strategy : Strategy
            The inner one.
        ledger : Ledger
            Up to its last row it belongs to the checkpoint.

        Raises
        ------
        AutoFlipError
            If a field of the state holds what a checkpoint cannot.
        """
        make_private(self.path)
        state = replace(state, inner=attributes_of(strategy, self.noisy))
        writer = TreeWriter(self.noisy, self.layout, self.reports)
        tree = [
            writer.write(self.settings),
            writer.write(asdict(ledger.mark())),
            writer.write(None if self.noisy else _take_generators()),
            writer.write_fields(state),
        ]
        new, before = self._file(self._number + 1), self._file(self._number)
        metadata = {"format": FORMAT, "state": json.dumps(tree)}
        write_arrays(new, writer.arrays, metadata)
        self._number += 1
        for path in self.path.glob(_FILES):
            if path not in (new, before):
                path.unlink()

    def open(
        self, like: RunState, strategy: Strategy, ledger: Ledger, num_rounds: int
    ) -> RunState | None:
        """Go on from the newest whole checkpoint.

        The inner strategy's attributes, the ledger and the process's generators are
        put back. Where noise may be drawn, the operating system seeds generators anew.

        Parameters
        ----------
        like : RunState
            Of a run that begins; the method's state is one of the same class.
        strategy : Strategy
            The inner one, which has not run yet.
        ledger : Ledger
        num_rounds : int

        Returns
        -------
        RunState or None
            None if nothing was saved here; nothing is changed then.

        Raises
        ------
        AutoFlipError
            If it is another run's folder, none of its checkpoints is whole, or more
            rounds are done than are asked for. Nothing is changed then.

        Warns
        -----
        AutoFlipWarning
            For each damaged checkpoint that was passed over, and of what no checkpoint
            can hold.
        """
        warn_unsaved(strategy, self.noisy)
        self._number = 0
        newest_first = sorted(self.path.glob(_FILES), reverse=True)
        faults: list[str] = []
        for path in newest_first:
            try:
                state, mark, generators = self._read(path, like)
                ledger.check(mark)
                break
            except DamagedFileError as error:
                faults.append(str(error))
        else:
            if not faults:
                return None
            raise AutoFlipError(
                f"{self.path} holds no whole checkpoint: {' '.join(faults)} Mend it, "
                "or delete the folder to start over."
            )
        if state.trained > num_rounds:
            raise AutoFlipError(
                f"{self.path} is in round {state.trained} already, num_rounds is "
                f"{num_rounds}; ask for as many or more, or use another folder."
            )
        for fault in faults:
            text = f"{fault} Going on from the checkpoint before it."
            warnings.warn(text, AutoFlipWarning, stacklevel=3)
        self._number = int(path.stem.removeprefix("checkpoint-"))
        restore_inplace(strategy, state.inner)
        ledger.resume(mark)
        if self.noisy:
            LOGGER.log(INFO, "%s: %s", self.path, _NEW_NOISE)
            seed_anew(strategy)
        elif generators is not None:
            _set_generators(generators)
        return state

    def _read(self, path: Path, like: RunState) -> tuple[RunState, Mark, Any]:
        """Read state, ledger's mark and generators."""
        arrays, metadata = read_arrays(path)
        if metadata.get("format") != FORMAT:
            raise AutoFlipError(
                f"{path}: expected format {FORMAT!r}, got {metadata.get('format')!r}; "
                "use the flwr-autoflip that wrote it, or another folder."
            )
        reader = TreeReader(arrays, self.layout, self.reports)
        try:
            settings, mark, generators, fields = json.loads(metadata["state"])
            others = _differences(reader.read(settings), self.settings)
            if not others:
                rest = Mark(**reader.read(mark)), reader.read(generators)
                return reader.read_fields(fields, like), *rest
        except _UNREADABLE as error:
            text = f"{path} holds no state: {visible(str(error))}"
            raise DamagedFileError(text) from error
        raise AutoFlipError(
            f"{self.path} holds another run: {'; '.join(others)}. Give this run a "
            "checkpoint_dir of its own."
        )

    def _file(self, number: int) -> Path:
        return self.path / f"checkpoint-{number:06}.safetensors"


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Say of each setting that differs what it was and what it is."""
    names, absent = {**before, **now}, "absent"
    both = [(name, before.get(name, absent), now.get(name, absent)) for name in names]
    return [f"{name} was {was}, is {new}" for name, was, new in both if was != new]


def _take_generators() -> dict[str, Any]:
    """Take the process's states: Flower samples and draws noise from them."""
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "python": getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda else [],
    }


def _set_generators(states: Mapping[str, Any]) -> None:
    setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


# --- One run at a time ---


@contextmanager
def claimed(folders: Iterable[Path]) -> Iterator[None]:
    """Hold folders for a run; they are made, and what a killed run left is removed.

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
            lock = FileLock(folder / LOCK, mode=0o600)
            _acquire(lock, folder)
            stack.callback(lock.release)
            for path in (*folder.glob("*"), *folder.glob(f"{REPORTS}/*")):
                if _PARTIAL.fullmatch(path.name) and not path.is_symlink():
                    path.unlink(missing_ok=True)
        yield


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        make_private(folder)
        if (folder / LOCK).is_symlink():
            raise OSError(f"{LOCK} is a link")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise AutoFlipError(
            f"{folder} is in use by another run: wait for its end, stop it, or give "
            "this run a folder of its own."
        ) from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise AutoFlipError(
                f"{folder} cannot be used by a run: {error}; give it a folder of its "
                "own."
            ) from error
        text = f"{folder} cannot be locked ({error}); see that only one run uses it."
        warnings.warn(text, AutoFlipWarning, stacklevel=2)
