"""What each round really cost, as JSON lines.

One row a node and phase, in the order they end, with ``phase`` "explore", "train" or
"evaluate"; exploring is round 0 (or the round in which a late node explores). Rows of
phase "server" hold what the server's own evaluation says. Totals are sums of rows, so
exploration is in each of them by construction.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from .core.cost import STEP_PER_FORWARD

Status = Literal["ok", "refused", "failed", "missing"]


@dataclass(frozen=True)
class NodeRow:
    """One node in one phase of one round.

    Parameters
    ----------
    round : int
    phase : {"explore", "train", "evaluate"}
    node : int
        Flower's node id.
    status : {"ok", "refused", "failed", "missing"}
        ``"failed"`` is the node's own error, ``"refused"`` a reply that broke a rule.
    reason : str (default: "")
        Why it is not ``"ok"``.
    bytes_down, bytes_up : int
        Serialised messages, bytes.
    plan_bytes : int
        Part of ``bytes_down`` that describes structure.
    parameters : int
        Trainable values of the model that the node really built.
    macs_per_example : int
        Forward MACs of that model.
    examples, eval_examples : int
        Examples that went through it with and without gradients, epochs included.
    seconds : float
        In the app's own training or testing code.
    """

    round: int
    phase: str
    node: int
    status: Status = "ok"
    reason: str = ""
    bytes_down: int = 0
    bytes_up: int = 0
    plan_bytes: int = 0
    parameters: int = 0
    macs_per_example: int = 0
    examples: int = 0
    eval_examples: int = 0
    seconds: float = 0.0

    @property
    def macs(self) -> int:
        """MACs the node spent: training steps at three forward passes each."""
        steps = STEP_PER_FORWARD * self.examples + self.eval_examples
        return self.macs_per_example * steps


@dataclass
class Ledger:
    """Rows, kept in memory and appended to a file as they come.

    Parameters
    ----------
    path : Path, optional
        JSON-lines file; its folder is made, an old file is replaced.
    """

    path: Path | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    _opened: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("")

    def add(self, row: NodeRow) -> None:
        """Append a node's row."""
        self._append(asdict(row) | {"macs": row.macs})

    def add_server(
        self, server_round: int, metrics: Mapping[str, Any], plan: Mapping[str, Any]
    ) -> None:
        """Append what the server's evaluation found, and the deployable plan's size.

        ``seconds`` is the wall-clock time since the ledger was opened.
        """
        row: dict[str, Any] = {"round": server_round, "phase": "server"}
        row |= {"metrics": dict(metrics), "plan": dict(plan)}
        self._append(row | {"seconds": time.monotonic() - self._opened})

    def _append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a ledger file; a last line cut short is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def total(
    rows: Iterable[Mapping[str, Any]],
    key: str,
    phases: Iterable[str] = ("explore", "train", "evaluate"),
    last_round: float = float("inf"),
) -> int:
    """Add up a column of node rows, exploration included.

    Parameters
    ----------
    rows : iterable of mapping
    key : str
        Such as ``"bytes_down"``, ``"bytes_up"`` or ``"macs"``.
    phases : iterable of str (default: all)
    last_round : float (default: infinity)
        Rounds after it are left out.

    Returns
    -------
    int
    """
    wanted = set(phases)
    return sum(
        int(row[key])
        for row in rows
        if row["phase"] in wanted and row["round"] <= last_round
    )
