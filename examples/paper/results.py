"""Finished runs, read back."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flwr_autoflip.ledger.page.curves import Curve

from .methods import EVERYTHING
from .records import CONFIG, Record, finished, read_record
from .tasks import TASKS, find_task

PER_ROUND = ("top1", "dense_top1", "local_top1", "bytes", "macs")
SINGLE = ("exploration", "plan", "plan_bytes", "lost", "seconds", "training_seconds")
UNIT_KEYS = ("parameters", "zeros", "dense_parameters", "units")


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

    @property
    def provenance(self) -> dict[str, Any]:
        """What it was made with; empty for runs from before that was kept."""
        return self.result.get("provenance", {})

    @cached_property
    def curve(self) -> Curve:
        """Accuracy and cumulative cost, an entry a round and one before round 1."""
        columns = ("top1", "dense_top1", "bytes", "macs")
        return Curve(*(np.array(self.result[key], float) for key in columns))


@dataclass
class Found:
    """What a folder of runs holds."""

    outcomes: list[Outcome] = field(default_factory=list)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    """(task, method) -> why the method does not take the task."""
    damaged: list[str] = field(default_factory=list)
    """One line a run that was skipped."""
    unfinished: int = 0
    """Runs that were begun only."""


def read_runs(folder: Path) -> Found:
    """Read all runs of one scale.

    Parameters
    ----------
    folder : Path
        Holds ``<task>/<method>/seed<k>/``, or is beside the file that has them; see
        :mod:`.records`.

    Returns
    -------
    Found
        Tasks and methods in the order in which the program lists them, then by seed.

    Raises
    ------
    ValueError
        If there is no finished run.
    """
    found, names = Found(), finished(folder)
    begun = (path.parent for path in folder.glob(f"*/*/seed*/{CONFIG}"))
    ended = set(names)
    found.unfinished = sum(
        one.relative_to(folder).as_posix() not in ended for one in begun
    )
    for name in names:
        try:
            _add(found, name, read_record(folder, name))
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            found.damaged.append(f"{name}: {type(error).__name__}: {error}")
    if not (found.outcomes or found.refused):
        damaged = f" ({len(found.damaged)} damaged)" if found.damaged else ""
        raise ValueError(
            f"{folder}: no finished run{damaged}; make some with "
            "python -m examples.paper run."
        )
    tasks, methods = list(TASKS), list(EVERYTHING)

    def place(one: Outcome) -> tuple[int, str, int, int]:
        base = tasks.index(find_task(one.task).data)
        return base, one.task, methods.index(one.method), one.seed

    found.outcomes.sort(key=place)
    return found


def _add(found: Found, name: str, record: Record) -> None:
    task, method, seed = name.split("/")
    find_task(task)
    if method not in EVERYTHING:
        raise ValueError("no such method")
    config, result = record["config"], record["result"]
    if "refused" in result:
        found.refused[task, method] = str(result["refused"])
        return
    one = Outcome(task, method, int(seed.removeprefix("seed")), config, result)
    _check(one)
    found.outcomes.append(one)


def _check(one: Outcome) -> None:
    """Raise on anything that would make a wrong figure."""
    here = (one.task, one.method, one.seed)
    if here != tuple(one.config[key] for key in ("task", "method", "seed")):
        raise ValueError(f"{CONFIG} is of another run")
    for key in SINGLE:
        one.result[key]
    for key in UNIT_KEYS:
        one.result["plan"][key]
    length = int(one.config["rounds"]) + 1
    for key in PER_ROUND:
        if len(one.result[key]) != length:
            raise ValueError(f"{key} has {len(one.result[key])} of {length} entries")
    if one.equal_rounds >= length or not np.isfinite(one.curve.top1).all():
        raise ValueError("top1 is not there up to FedAvg's last round")


def tasks_of(outcomes: Iterable[Outcome]) -> list[str]:
    """List the tasks that have a run, in order."""
    return list(dict.fromkeys(one.task for one in outcomes))


def by_method(outcomes: Iterable[Outcome], task: str) -> dict[str, list[Outcome]]:
    """Collect a task's runs, a method each with its seeds in order."""
    methods: dict[str, list[Outcome]] = {}
    for one in outcomes:
        if one.task == task:
            methods.setdefault(one.method, []).append(one)
    return methods
