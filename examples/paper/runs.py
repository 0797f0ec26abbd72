"""Making runs: what is done is not done again, nothing is overwritten."""

import json
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flwr_autoflip import AutoFlipError
from flwr_autoflip.ledger.ledger import node_rows, read_ledger
from flwr_autoflip.ledger.page.curves import curve
from flwr_autoflip.ledger.page.runs import Run as Ran
from flwr_autoflip.ledger.page.runs import failures
from flwr_autoflip.ledger.provenance import provenance

from ..inprocess import InProcessGrid
from .federation import DEVICE, HeldOut, Setting, make_client_app, run_server
from .methods import EVERYTHING, METHODS, Compared
from .records import RUN, collected, read_record, write_atomically

LEDGER, LOG = "ledger.jsonl", "log.txt"


class RunError(ValueError):
    """A study holds something else than what was asked for, or a run failed."""


@dataclass(frozen=True)
class Run:
    """One training, and where it is kept; see :mod:`.records`.

    Parameters
    ----------
    study : Path
    task, scale : str
    method : Compared
    seed : int
    data : str
        Folder of data sets, or "".
    evaluate_on : {"test", "validation"}
    """

    study: Path
    task: str
    scale: str
    method: Compared
    seed: int
    data: str = ""
    evaluate_on: HeldOut = "test"

    @property
    def name(self) -> str:
        """Its name in the study."""
        return f"{self.task}/{self.method.name}/seed{self.seed}"

    @property
    def folder(self) -> Path:
        """Where everything about the run is."""
        return self.study / self.name

    @property
    def reference(self) -> "Run | None":
        """AutoFLIP's run of the same seed, if this one copies its compression."""
        copies = self.method.copies
        return replace(self, method=METHODS["autoflip"]) if copies else None

    @property
    def done(self) -> bool:
        """Whether the run has ended."""
        return (self.folder / RUN).exists() or self.name in collected(self.study)

    def result(self) -> dict[str, Any]:
        """Read what came out."""
        result: dict[str, Any] = read_record(self.study, self.name)["result"]
        return result

    def setting(self) -> Setting:
        """Say what is run; a method whose compression is copied must be done."""
        threshold = ""
        if self.reference is not None:
            plan = self.reference.result()["plan"]
            threshold = f"{plan['dense_parameters'] / plan['parameters']:.6g}x"
        return Setting(
            self.task,
            self.scale,
            self.method.name,
            self.seed,
            threshold,
            self.data,
            self.evaluate_on,
        )

    def check(self) -> None:
        """Raise ``RunError`` if what the study holds is of another configuration."""
        asked = json.loads(json.dumps(self.setting().describe()))
        there = read_record(self.study, self.name)["config"]
        differs = sorted(k for k, value in asked.items() if there.get(k) != value)
        if differs:
            raise RunError(
                f"{self.folder} holds a run with other {', '.join(differs)}; choose "
                "another --out, or move it away."
            )


def start_worker() -> None:
    """Make a process fit to run one training at a time on one core."""
    torch.set_num_threads(1)
    logging.captureWarnings(True)
    warnings.simplefilter("default")


def execute(run: Run) -> None:
    """Make one run, from its first round, and write configuration and result.

    Raises
    ------
    RunError
        If it ended early.
    """
    setting = run.setting()
    run.folder.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE
    made = {"provenance": provenance("examples") | {"device": device}}
    start, cpu = time.monotonic(), time.process_time()
    grid = InProcessGrid(make_client_app(), setting.load().num_nodes, asdict(setting))
    try:
        with _logging_to(run.folder / LOG):
            run_server(grid, setting, run.folder)
        result = summarise(run.folder, setting)
    except AutoFlipError as error:  # such as BatchNorm scores without BatchNorm
        result = {"refused": str(error)}
    result["seconds"] = time.monotonic() - start
    result["cpu_seconds"] = time.process_time() - cpu
    record = {"config": setting.describe(), "result": result | made}
    write_atomically(run.folder / RUN, json.dumps(record))


def summarise(folder: Path, setting: Setting) -> dict[str, Any]:
    """Put what a run's files say into one small structure.

    Parameters
    ----------
    folder : Path
    setting : Setting

    Returns
    -------
    dict
        Curves have an entry before round 1; bytes and MACs are cumulative and include
        exploration. Figures that were not taken are None. ``failures`` has the reasons
        of the ``lost`` replies.
    """
    rows = read_ledger(folder / LEDGER)
    line, nodes = curve(rows), node_rows(rows)
    server = [row for row in rows if row["phase"] == "server"]
    if len(server) != setting.rounds + 1:
        raise RunError(
            f"{folder} has {len(server) - 1} of {setting.rounds} rounds; see {LOG}."
        )
    explores = EVERYTHING[setting.method].explores
    exploring = [row for row in nodes if row["round"] <= 1 and explores]
    columns = {"down": "bytes_down", "up": "bytes_up", "macs": "macs"}
    local = [row["metrics"].get("local-top1", np.nan) for row in server]
    return {
        "top1": line.top1.round(5).tolist(),
        "dense_top1": _or_none(line.dense_top1),
        "local_top1": _or_none(np.array(local)),
        "bytes": line.bytes_moved.astype(int).tolist(),
        "macs": line.macs.astype(int).tolist(),
        "exploration": {
            key: sum(row[column] for row in exploring)
            for key, column in columns.items()
        },
        "plan_bytes": sum(row["plan_bytes"] for row in nodes),
        "lost": sum(row["status"] != "ok" for row in nodes),
        "failures": failures(Ran(setting.method, rows)),
        "training_seconds": sum(row["seconds"] for row in nodes),
        "plan": server[-1]["plan"],
        **json.loads((folder / "watched.json").read_text()),
    }


def _or_none(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else round(float(v), 5) for v in values]


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send Flower's log, and warnings, to a file for a while."""
    handler = logging.FileHandler(path, mode="w")
    loggers = [logging.getLogger(name) for name in ("flwr", "py.warnings")]
    before = [logger.handlers for logger in loggers]
    for logger in loggers:
        logger.handlers = [handler]
    try:
        yield
    finally:
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers = handlers
        handler.close()
