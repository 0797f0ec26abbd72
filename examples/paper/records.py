"""Finished runs: a file each, and one file for all that a study collected.

A study is a folder; every run that is made has one below it,
``<task>/<method>/seed<k>/``, which ends with a ``run.json``: configuration and result.
:func:`collect` puts all into ``<study>.jsonl.gz``, one JSON object a line, sorted: the
same runs are the same bytes. A run's own file comes before its line in there, so a run
that is made again replaces the old one.
"""

import gzip
import io
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from flwr_autoflip.ledger.page.curves import Curve

from .methods import EVERYTHING
from .tasks import TASKS, find_task

RUN = "run.json"
PER_ROUND = ("top1", "dense_top1", "local_top1", "bytes", "macs")
SINGLE = ("exploration", "plan_bytes", "lost", "seconds", "training_seconds")
PLAN = ("parameters", "zeros", "dense_parameters", "units")
DAMAGE = (ValueError, KeyError, TypeError, AttributeError)
"""What a damaged file or run raises."""
Record = Mapping[str, Any]
"""A run's ``"config"`` and ``"result"``; see :class:`Outcome`."""


# --- Files ---


def collected(study: Path) -> Mapping[str, Record]:
    """Read a study's file: ``"<task>/<method>/seed<k>"`` to its record.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    path = _file_of(study)
    return _read(path, path.stat().st_mtime_ns) if path.exists() else {}


def finished(study: Path) -> list[str]:
    """List the names of all runs that have ended, by task, method, seed."""
    made = {
        path.parent.relative_to(study).as_posix()
        for path in study.glob(f"*/*/seed*/{RUN}")
    }
    return sorted(made | set(collected(study)), key=lambda name: name.split("/"))


def read_record(study: Path, name: str) -> Record:
    """Read one finished run, from its own file if there is one."""
    own = study / name / RUN
    if not own.exists():
        return collected(study)[name]
    record: Record = json.loads(own.read_text())
    return record


def collect(study: Path) -> Path:
    """Put all finished runs into the study's file; their own stay.

    Parameters
    ----------
    study : Path

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If a run cannot be read, or there is none; the old file stays as it is.
    """
    lines = []
    for name in finished(study):
        try:
            line = {"run": name, **read_record(study, name)}
        except (ValueError, OSError) as error:
            raise ValueError(f"{study / name} cannot be read: {error}") from error
        lines.append(json.dumps(line, separators=(",", ":")) + "\n")
    if not lines:
        raise ValueError(f"{study}: no finished run.")
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, packed, mtime=0) as file:
        file.write("".join(lines).encode())
    write_atomically(_file_of(study), packed.getvalue())
    return _file_of(study)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file such that it is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(part, path)


def _file_of(study: Path) -> Path:
    return study.with_name(f"{study.name}.jsonl.gz")


@lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> dict[str, Record]:
    """Read a file once for every time at which it was changed."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        return {record.pop("run"): record for record in records}
    except (*DAMAGE, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it.") from error


# --- What came out ---


@dataclass(frozen=True)
class Outcome:
    """One finished run.

    Parameters
    ----------
    task, method : str
    seed : int
    config : dict
        What was run; see :meth:`.federation.Setting.describe`.
    result : dict
        What came out; see :func:`.runs.summarise`.
    """

    task: str
    method: str
    seed: int
    config: dict[str, Any]
    result: dict[str, Any]

    @property
    def equal_rounds(self) -> int:
        """FedAvg's rounds: where methods are compared at equal rounds."""
        return int(self.config["settings"]["rounds"])

    @cached_property
    def curve(self) -> Curve:
        """Accuracy and cumulative cost, an entry a round and one before round 1."""
        columns = ("top1", "dense_top1", "bytes", "macs")
        return Curve(*(np.array(self.result[key], float) for key in columns))

    def check(self) -> None:
        """Raise on anything that would make a wrong figure."""
        here = (self.task, self.method, self.seed)
        if here != tuple(self.config[key] for key in ("task", "method", "seed")):
            raise ValueError("it is another run")
        for key in SINGLE:
            self.result[key]
        for key in PLAN:
            self.result["plan"][key]
        length = int(self.config["rounds"]) + 1
        for key in PER_ROUND:
            count = len(self.result[key])
            if count != length:
                raise ValueError(f"{key} has {count} of {length} entries")
        if self.equal_rounds >= length or not np.isfinite(self.curve.top1).all():
            raise ValueError("top1 is not there up to FedAvg's last round")


Methods = dict[str, list[Outcome]]
"""Method -> its runs of one task, by seed."""


@dataclass
class Found:
    """What a study holds."""

    outcomes: list[Outcome] = field(default_factory=list)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    """(task, method) -> why the method does not take the task."""

    @property
    def scale(self) -> str:
        """Name of the runs' scale."""
        return str(self.outcomes[0].config["scale"]) if self.outcomes else ""

    def by_task(self) -> dict[str, Methods]:
        """Sort the runs by task and method."""
        tasks: dict[str, Methods] = {}
        for one in self.outcomes:
            tasks.setdefault(one.task, {}).setdefault(one.method, []).append(one)
        return tasks


def read_runs(study: Path) -> Found:
    """Read all finished runs of a study.

    Parameters
    ----------
    study : Path

    Returns
    -------
    Found
        Tasks and methods in the order in which the program lists them, then by seed.

    Raises
    ------
    ValueError
        If there is no finished run, or one is damaged.
    """
    found, names = Found(), finished(study)
    if not names:
        raise ValueError(
            f"{study}: no finished run; make some with python -m examples.paper run."
        )
    for name in names:
        try:
            _add(found, name, read_record(study, name))
        except DAMAGE as error:
            raise ValueError(
                f"{study / name} is damaged, move it away: "
                f"{type(error).__name__}: {error}"
            ) from error
    tasks, methods = list(TASKS), list(EVERYTHING)
    found.outcomes.sort(
        key=lambda one: (tasks.index(one.task), methods.index(one.method), one.seed)
    )
    return found


def _add(found: Found, name: str, record: Record) -> None:
    """Add one run, or why it was refused."""
    task, method, seed = name.split("/")
    find_task(task)
    if method not in EVERYTHING:
        raise ValueError("no such method")
    config, result = record["config"], record["result"]
    if "refused" in result:
        found.refused[task, method] = str(result["refused"])
        return
    one = Outcome(task, method, int(seed.removeprefix("seed")), config, result)
    one.check()
    found.outcomes.append(one)
