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
from ...graph import storage
from ...graph.codec import layout_digest
from ...graph.layout import Layout
from ...ledger.ledger import Ledger, Mark
from ..state import RunState
from . import inner
from .tree import Tree

LOGGER = getLogger("flwr")
FORMAT = "flwr-autoflip checkpoint 2"
LOCK, REPORTS = "autoflip.lock", "reports"
_UNREADABLE = (*storage.UNREADABLE, LookupError, ArithmeticError, RecursionError)
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

    ``settings`` make it this run and no other, beside the model. The folder ``reports``
    in it is for those that a state may hold. Where noise may be drawn, which ``noisy``
    says, no file holds a generator.
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

        The state's ``inner`` is filled in. Up to its last row the ledger belongs to it.
        Raises ``AutoFlipError`` if the state holds what a checkpoint cannot.
        """
        storage.make_private(self.path)
        state = replace(state, inner=inner.attributes_of(strategy, self.noisy))
        tree = Tree(self.layout, self.reports, self.noisy)
        parts = [
            tree.write(self.settings),
            tree.write(asdict(ledger.mark())),
            tree.write(None if self.noisy else _take_generators()),
            tree.write_fields(state),
        ]
        new, before = self._file(self._number + 1), self._file(self._number)
        metadata = {"format": FORMAT, "state": json.dumps(parts)}
        storage.write_arrays(new, tree.arrays, metadata)
        self._number += 1
        for path in self.path.glob(_FILES):
            if path not in (new, before):
                path.unlink()

    def open(
        self, like: RunState, strategy: Strategy, ledger: Ledger, num_rounds: int
    ) -> RunState | None:
        """Go on from the newest whole checkpoint; None if nothing was saved here.

        The inner strategy's attributes, the ledger and the process's generators are
        put back. Where noise may be drawn, the operating system seeds generators anew.
        ``like`` is the state of a run that begins, the method's of the same class.

        Raises ``AutoFlipError``, and changes nothing, if it is another run's folder,
        none of its checkpoints is whole, or more rounds are done than are asked for.
        Warns of damaged checkpoints, and of what no checkpoint can hold.
        """
        inner.warn_unsaved(strategy, self.noisy)
        self._number = 0
        faults: list[str] = []
        for path in sorted(self.path.glob(_FILES), reverse=True):
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
        inner.restore_inplace(strategy, state.inner)
        ledger.resume(mark)
        if self.noisy:
            LOGGER.log(INFO, "%s: %s", self.path, _NEW_NOISE)
            inner.seed_anew(strategy)
        elif generators is not None:
            _set_generators(generators)
        return state

    def _read(self, path: Path, like: RunState) -> tuple[RunState, Mark, Any]:
        """Read state, ledger's mark and generators."""
        arrays, metadata = storage.read_arrays(path)
        if metadata.get("format") != FORMAT:
            raise AutoFlipError(
                f"{path}: expected format {FORMAT!r}, got {metadata.get('format')!r}; "
                "use the flwr-autoflip that wrote it, or another folder."
            )
        tree = Tree(self.layout, self.reports, arrays=arrays)
        try:
            settings, mark, generators, fields = json.loads(metadata["state"])
            others = _differences(tree.read(settings), self.settings)
            if not others:
                rest = Mark(**tree.read(mark)), tree.read(generators)
                return tree.read_fields(fields, like), *rest
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
    return [
        f"{name} was {before.get(name, 'absent')}, is {now.get(name, 'absent')}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


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

    One may stand there twice. The operating system ends a claim with its process.
    Raises ``AutoFlipError`` if another run holds one, or one cannot be written; warns
    where nothing can be locked, as on some network file systems.
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
        storage.make_private(folder)
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
