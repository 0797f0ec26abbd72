"""``tensorboard``: a run's ledger as scalars, also while it grows.

It reads the ledger, so it serves old runs as well as running ones, and a server needs
neither the package nor an option.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import AutoFlipError, visible
from ..ledger.amounts import ratio
from ..ledger.headline import numbers
from ..ledger.page.runs import read_runs
from ..ledger.rows import NODE_PHASES
from .output import say

SECONDS_BETWEEN_LOOKS = 2.0
LONGEST_TAG = 120
"""Characters of a name in a tag."""


def write_scalars(path: Path, logdir: Path, follow: bool) -> None:
    """Write a run's scalars, and with ``follow`` go on until interrupted.

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
                    writer.add_scalar(tag, float(value), step)
            written = found
            writer.flush()
            if not follow:
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        pass
    finally:
        writer.close()
    say(f"Written: {logdir}; look with: tensorboard --logdir {logdir}")


def scalars(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, int], float]:
    """Turn a ledger's rows, from the first on, into (tag, round) to value.

    Totals are those at the end of each round, exploring included. What is unknown adds
    nothing; where nothing is known, there is no total.
    """
    found: dict[tuple[str, int], float] = {}
    moved = macs = 0
    for row in rows:
        step = row["round"]
        if row["phase"] in NODE_PHASES:
            moved += row["bytes_down"] + row["bytes_up"]
            found["cost/bytes-moved", step] = moved
            if row.get("macs") is not None:
                macs += row["macs"]
                found["cost/client-macs", step] = macs
        elif row["phase"] in ("server", "plan"):
            found |= {(tag, step): value for tag, value in _server(row)}
    return found


def _server(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in numbers(row.get("metrics", {})).items():
        yield f"server/{visible(name, LONGEST_TAG)}", value
    plan = row["plan"]
    kept = ratio(plan.get("parameters"), plan.get("dense_parameters"))
    if kept is not None:
        yield "plan/parameters-kept", kept
    for name, count in (plan.get("units") or {}).items():
        yield f"units/{visible(name, LONGEST_TAG)}", count
