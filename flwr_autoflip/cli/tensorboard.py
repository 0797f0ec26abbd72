"""``tensorboard``: a run's ledger as scalars, also while it grows.

It reads the ledger, so it serves old runs as well as running ones, and a server needs
neither the package nor an option.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from ..core.errors import AutoFlipError
from ..ledger import NODE_PHASES
from ..report.runs import read_runs

SECONDS_BETWEEN_LOOKS = 2.0


def write_scalars(path: Path, logdir: Path, follow: bool) -> None:
    """Write a run's scalars, and with ``follow`` go on until interrupted.

    Parameters
    ----------
    path : Path
        A ledger, or its folder.
    logdir : Path
    follow : bool

    Raises
    ------
    AutoFlipError
        Without TensorBoard, or if there is not one ledger.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise AutoFlipError(
            f'{error}; install the extra: pip install "flwr-autoflip[tensorboard]"'
        ) from error
    if len(runs := read_runs([path])) > 1:
        raise AutoFlipError(f"{path} holds {len(runs)} runs; name one of them.")
    writer = SummaryWriter(str(logdir))
    written: dict[tuple[str, int], float] = {}
    try:
        while True:
            found = scalars(read_runs([path])[0].rows)
            for (tag, step), value in found.items():
                if written.get((tag, step)) != value:
                    writer.add_scalar(tag, value, step)
            written = found
            writer.flush()
            if not follow:
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        pass
    finally:
        writer.close()
    typer.echo(f"Written: {logdir}; look with: tensorboard --logdir {logdir}")


def scalars(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, int], float]:
    """Turn a ledger's rows into scalars.

    Parameters
    ----------
    rows : iterable of dict
        From the first on: totals begin there.

    Returns
    -------
    dict
        (tag, round) to value; totals at the end of each round, exploring included.
    """
    found: dict[tuple[str, int], float] = {}
    moved = macs = 0
    for row in rows:
        step = row["round"]
        for name, value in row.get("metrics", {}).items():
            found[f"server/{name}", step] = value
        plan = row.get("plan", {})
        if plan:
            share = plan["parameters"] / plan["dense_parameters"]
            found["plan/parameters-kept", step] = share
        for name, count in plan.get("units", {}).items():
            found[f"units/{name}", step] = count
        if row["phase"] in NODE_PHASES:
            moved += row["bytes_down"] + row["bytes_up"]
            macs += row["macs"]
            found["cost/bytes-moved", step] = moved
            found["cost/client-macs", step] = macs
    return found
