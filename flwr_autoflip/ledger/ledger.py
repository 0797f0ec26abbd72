"""What each round really cost, as JSON lines.

One row a node and phase, in the order they end; :class:`.rows.NodeRow` says what it
holds. Rows of phase "server" hold what the server's own evaluation says, rows of phase
"plan" what is kept from a round on and what the dense model weighs as a message. The
first row, of phase "run", says what the run is made with, see :mod:`.provenance`; a run
that goes on after a stop adds another. Totals are sums of rows, so exploration is in
each of them by construction.
"""

import json
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from ..errors import AutoFlipWarning, DamagedFileError
from ..graph.storage import make_private, open_private, write_whole
from .provenance import provenance
from .rows import NODE_PHASES, NodeRow, Rows, parse_rows

Row = TypeVar("Row", bound=Mapping[str, Any])


@dataclass(frozen=True)
class Mark:
    """A place in a ledger's file: how many bytes are before it, and their digest."""

    size: int
    digest: str


@dataclass
class Ledger:
    """Rows, kept in memory (packed) and appended to a file as they come.

    Parameters
    ----------
    path : Path, optional
        JSON-lines file. It stays as it is until :meth:`clear` or :meth:`resume`, or
        the first row, which begins it anew.
    """

    path: Path | None = None
    rows: Rows = field(default_factory=Rows)
    _begun: bool = False
    _size: int = 0
    _digest: Any = field(default_factory=blake2b)
    _opened: float = field(default_factory=time.monotonic)

    def add(self, row: NodeRow) -> None:
        """Append a node's row."""
        self._append(asdict(row) | {"macs": row.macs})

    def add_run(self, server_round: int) -> None:
        """Append what the run is made with, from the round after this one on."""
        self._append({"round": server_round, "phase": "run", **provenance()})

    def add_server(
        self, server_round: int, metrics: Mapping[str, Any], plan: Mapping[str, Any]
    ) -> None:
        """Append what the server's evaluation found, and the deployable plan's size.

        ``seconds`` is the wall-clock time since the ledger was begun or resumed.
        """
        row: dict[str, Any] = {"round": server_round, "phase": "server"}
        row |= {"metrics": dict(metrics), "plan": dict(plan)}
        self._append(row | {"seconds": time.monotonic() - self._opened})

    def add_plan(self, server_round: int, plan: Mapping[str, Any]) -> None:
        """Append what is kept from a round on; see :mod:`.server.progress`."""
        self._append({"round": server_round, "phase": "plan", **plan})

    def _append(self, row: dict[str, Any]) -> None:
        if not self._begun:
            self.clear()
        self.rows.append(row)
        if self.path is not None:
            line = _line(row)
            with open_private(self.path, "ab") as file:
                file.write(line)
            self._size += len(line)
            self._digest.update(line)

    def reasons(self, *phases: str) -> list[str]:
        """Give the different reasons why nodes' work of these phases did not count."""
        rows = (row for row in node_rows(self.rows) if row["phase"] in phases)
        return sorted({row["reason"] for row in rows if row["status"] != "ok"})

    # --- Checkpoints ---

    def clear(self) -> None:
        """Begin anew, with an empty file; its folder is made."""
        self._become(b"", [])

    def mark(self) -> Mark:
        """Give the place after the last row, once the file is safely on disk."""
        if self.path is not None:
            with open_private(self.path, "ab") as file:
                os.fsync(file.fileno())
        return Mark(self._size, self._digest.hexdigest())

    def check(self, mark: Mark) -> bytes:
        """Read the file up to a mark.

        Raises
        ------
        DamagedFileError
            If it is not what it was when the mark was made.
        """
        head = self._content()[: mark.size]
        if blake2b(head).hexdigest() != mark.digest:
            raise DamagedFileError(
                f"{self.path} does not begin with this run's {mark.size} bytes."
            )
        return head

    def resume(self, mark: Mark) -> None:
        """Go on from a mark; what nodes did after it stays, as ``"lost"``.

        Those costs were real. Plans and evaluations after the mark are cut off:
        they come again. Raises what :meth:`check` does.
        """
        head = self.check(mark)
        after, _ = parse_rows(self._content()[mark.size :])
        lost = [_as_lost(row) for row in node_rows(after)]
        self._become(head + b"".join(map(_line, lost)), parse_rows(head)[0] + lost)

    def _content(self) -> bytes:
        found = self.path is not None and self.path.exists()
        return self.path.read_bytes() if self.path is not None and found else b""

    def _become(self, content: bytes, rows: list[dict[str, Any]]) -> None:
        self.rows, self._begun = Rows(rows), True
        self._opened = time.monotonic()
        self._size, self._digest = len(content), blake2b(content)
        if self.path is not None:
            make_private(self.path.parent)
            write_whole(self.path, content)


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _as_lost(row: dict[str, Any]) -> dict[str, Any]:
    if row["status"] == "lost":
        return row
    was = f"{row['status']}: {row['reason']}" if row["reason"] else row["status"]
    reason = f"the server stopped before the round was done; it was {was}"
    return {**row, "status": "lost", "reason": reason}


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a ledger file; a last line cut short is left out.

    Parameters
    ----------
    path : Path

    Returns
    -------
    list of dict
        Whole rows; what they hold for sure is in :mod:`.rows`.

    Warns
    -----
    AutoFlipWarning
        If other lines are no whole rows; they are left out.
    """
    rows, unreadable = parse_rows(path.read_bytes())
    if unreadable:
        text = f"{path}: {unreadable} lines are no whole rows and are left out."
        warnings.warn(text, AutoFlipWarning, stacklevel=2)
    return rows


def node_rows(rows: Iterable[Row]) -> list[Row]:
    """Give the rows that are a node's, without those of the server itself."""
    return [row for row in rows if row["phase"] in NODE_PHASES]


def dense_bytes(row: Mapping[str, Any], dense: Mapping[str, int]) -> int:
    """Give the bytes that the inner strategy alone would have moved for a node's row.

    The dense model down, and up again where a reply came; exploring and asking for
    budgets would not have been, so they count nothing. ``dense`` is a plan row's
    ``"dense_message"``: bytes of a request (``"down"``), of a trained model (``"up"``)
    and of metrics alone (``"metrics"``).

    Examples
    --------
    >>> row = {"phase": "train", "bytes_up": 7}
    >>> dense_bytes(row, {"down": 100, "up": 110, "metrics": 10})
    210
    """
    if row["phase"] not in ("train", "evaluate"):
        return 0
    reply = dense["up" if row["phase"] == "train" else "metrics"]
    return dense["down"] + (reply if row["bytes_up"] else 0)


def total(
    rows: Iterable[Mapping[str, Any]],
    key: str,
    phases: Iterable[str] = NODE_PHASES,
    last_round: float = float("inf"),
) -> int:
    """Add up what is known of a column of node rows, exploration included.

    What is null, unknown, adds nothing; :func:`unknown` tells whether that is all.
    """
    wanted = set(phases)
    return sum(
        int(row.get(key) or 0)
        for row in rows
        if row["phase"] in wanted and row["round"] <= last_round
    )


def unknown(rows: Iterable[Mapping[str, Any]], key: str) -> int:
    """Count the node rows whose column is unknown: a total is *at least* that much.

    Examples
    --------
    >>> rows = [{"phase": "train", "macs": 7}, {"phase": "train", "macs": None}]
    >>> unknown(rows, "macs")
    1
    """
    return sum(row.get(key) is None for row in node_rows(rows))
