"""What the deployment measured: seconds a round, bytes by ledger and SuperLink."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.table import Table

from flwr_autoflip.ledger.ledger import total

from ..quickstart.compare import LABELS, Rows

WAYS = ("down", "up")


def round_seconds(rows: Rows) -> list[float]:
    """Give the wall-clock seconds of each round; exploring is before the first."""
    ends = [row["seconds"] for row in rows if row["phase"] == "server"]
    return [after - before for before, after in pairwise(ends)]


def network_rows(
    ledgers: Mapping[str, Sequence[Rows]],
    counted: Mapping[str, Sequence[Mapping[str, int]]],
) -> list[dict[str, Any]]:
    """Put seconds and bytes of every method together.

    Parameters
    ----------
    ledgers : mapping of str to sequence of rows
        Method to a ledger a run.
    counted : mapping of str to sequence of mapping
        Method to the SuperLink's ``down`` and ``up`` of these runs, bytes.

    Returns
    -------
    list of dict
        One a method: number of its ``rounds``, ``seconds`` of the median one, the
        ``ledger``'s and the ``superlink``'s bytes.
    """
    times = {
        m: [s for r in runs for s in round_seconds(r)] for m, runs in ledgers.items()
    }
    seconds = {method: statistics.median(each) for method, each in times.items()}
    return [
        {
            "method": method,
            "rounds": len(times[method]),
            "seconds": seconds[method],
            "ledger": {
                way: sum(total(rows, f"bytes_{way}") for rows in runs) for way in WAYS
            },
            "superlink": {
                way: sum(run[way] for run in counted[method]) for way in WAYS
            },
        }
        for method, runs in ledgers.items()
    ]


def network_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show :func:`network_rows`."""
    table = Table(title="on the network", padding=(0, 0))
    table.add_column("method")
    for name in ("s a round", "MB by ledger", "by SuperLink"):
        table.add_column(name, justify="right")
    table.add_column("difference", justify="right")
    for row in rows:
        ours, theirs = (sum(row[who].values()) for who in ("ledger", "superlink"))
        table.add_row(
            LABELS[row["method"]],
            f"{row['seconds']:.2f}",
            f"{ours / 1e6:.3f}",
            f"{theirs / 1e6:.3f}",
            f"{100 * (ours / theirs - 1):+.2f} %",
        )
    return table
