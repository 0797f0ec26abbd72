"""What the deployment measured: seconds a round, bytes as the SuperLink counted them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from flwr_autoflip.ledger import total

from ..quickstart.compare import LABELS, Rows

HEADER = (
    "method",
    "s a round",
    "of FedAvg's",
    "MB by ledger",
    "MB by SuperLink",
    "difference",
)


def round_seconds(rows: Rows) -> list[float]:
    """Give the wall-clock seconds of each round; exploring is before the first."""
    ends = [row["seconds"] for row in rows if row["phase"] == "server"]
    return [after - before for before, after in zip(ends, ends[1:], strict=False)]


def ledger_bytes(rows: Rows) -> dict[str, int]:
    """Give a ledger's totals under the names that SuperLink's counters have here."""
    return {way: total(rows, f"bytes_{way}") for way in ("down", "up")}


def network_table(
    ledgers: Mapping[str, Rows], counted: Mapping[str, Mapping[str, int]]
) -> Table:
    """Put both measurements of every method into one table.

    Parameters
    ----------
    ledgers : mapping of str to rows
        Method to its ledger; "fedavg" is what the others are compared with.
    counted : mapping of str to mapping
        Method to the SuperLink's ``down`` and ``up``, bytes.

    Returns
    -------
    Table
    """
    table = Table(title="on the network", padding=(0, 0))
    for number, name in enumerate(HEADER):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in network_rows(ledgers, counted):
        table.add_row(*row)
    return table


def network_rows(
    ledgers: Mapping[str, Rows], counted: Mapping[str, Mapping[str, int]]
) -> Sequence[Sequence[str]]:
    """Write the cells of :func:`network_table`."""
    seconds = {m: statistics.median(round_seconds(r)) for m, r in ledgers.items()}
    cells = []
    for method, rows in ledgers.items():
        ours = sum(ledger_bytes(rows).values())
        theirs = sum(counted[method].values())
        cells.append(
            [
                LABELS[method],
                f"{seconds[method]:.2f}",
                f"{seconds[method] / seconds['fedavg']:.2f}",
                f"{ours / 1e6:.3f}",
                f"{theirs / 1e6:.3f}",
                f"{100 * (ours / theirs - 1):+.2f} %",
            ]
        )
    return cells
