"""A run as its ledger tells it: what the page and the command line show."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import AutoFlipError, visible
from ..headline import headline
from ..ledger import dense_bytes, node_rows, unknown
from ..rows import Row, parse_rows
from .curves import WINDOW, Curve, curve, spent_until

LEDGER = "ledger.jsonl"
MOST_COLUMNS = 1200
"""Rounds of which units are shown, evenly spread: a screen has few more pixels."""


@dataclass(frozen=True)
class Run:
    """One run.

    Parameters
    ----------
    name : str
        What it is called beside others.
    rows : sequence of dict
        Its ledger's whole rows.
    unreadable : int (default: 0)
        Lines of the ledger that were no whole rows.
    """

    name: str
    rows: Sequence[Row]
    unreadable: int = 0

    def of_phase(self, *phases: str) -> list[Row]:
        """Rows of some phases."""
        return [row for row in self.rows if row["phase"] in phases]

    @cached_property
    def nodes(self) -> list[Row]:
        """Rows of nodes."""
        return node_rows(self.rows)

    @cached_property
    def plans(self) -> list[Row]:
        """Rows of plans, each from the round in which it began to hold."""
        return self.of_phase("plan")

    @property
    def exploring(self) -> list[Row]:
        """Rows that are spent on exploring and asking for budgets."""
        return self.of_phase("explore", "budget")

    @cached_property
    def rounds(self) -> int:
        """The last round of which anything is known."""
        return max((row["round"] for row in self.rows), default=0)

    @cached_property
    def curve(self) -> Curve | None:
        """Accuracy and costs after each evaluation; None without evaluations."""
        return None if self.metric is None else curve(self.rows, self.metric)

    @property
    def metric(self) -> str | None:
        """The server's metric to show; None if it never evaluated."""
        last = self.of_phase("server")[-1:]
        found = headline(last[0]["metrics"]) if last else None
        return None if found is None else found[0]

    @property
    def deployed(self) -> dict[str, Any]:
        """Sizes of the model that was evaluated last, or planned last; or empty."""
        last = (self.of_phase("server") or self.plans)[-1:]
        return last[0]["plan"] if last else {}

    @property
    def dense_units(self) -> dict[str, int]:
        """Units of the dense model's groups; empty where a ledger lacks them."""
        return self.plans[-1]["dense_units"] if self.plans else {}

    def spent(self, *keys: str) -> NDArray[np.float64]:
        """Sums of columns until the end of every round, ``(rounds + 1,)``."""
        rounds = np.arange(self.rounds + 1)
        columns = [spent_until(self.rows, rounds, key) for key in keys]
        return np.asarray(np.sum(columns, axis=0))

    def dense_moved(self) -> NDArray[np.float64] | None:
        """Bytes that the inner strategy alone would have moved, ``(rounds + 1,)``."""
        message = self.plans[-1].get("dense_message") if self.plans else None
        return message and self._each_round(lambda row: dense_bytes(row, message))

    def dense_spent(self) -> NDArray[np.float64] | None:
        """MACs of the dense model for the rounds' work, ``(rounds + 1,)``.

        What nodes did, times what the dense model takes over what theirs takes. None
        where that is not known; work of which nothing is known adds nothing.
        """
        dense = self.deployed.get("dense_macs")

        def work(row: Row) -> float:
            macs, own = row.get("macs"), row.get("macs_per_example")
            if row["phase"] not in ("train", "evaluate") or not (
                macs and own and dense
            ):
                return 0.0
            return float(macs * dense / own)

        return None if dense is None else self._each_round(work)

    def _each_round(self, amount: Callable[[Row], float]) -> NDArray[np.float64]:
        sums = np.zeros(self.rounds + 1)
        for row in self.nodes:
            sums[row["round"]] += amount(row)
        return np.cumsum(sums)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read runs from what a user names, and give each a name of its own.

    Paths are ledger files, folders with a ``ledger.jsonl``, or folders with such
    folders one or two levels below.

    Raises
    ------
    AutoFlipError
        If there is no ledger, or one is empty or no ledger.
    """
    files = [file for path in paths for file in _ledgers(path)]
    return [_read(*one) for one in zip(_names(files), files, strict=True)]


def _ledgers(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for pattern in (LEDGER, f"*/{LEDGER}", f"*/*/{LEDGER}"):
        if found := sorted(path.glob(pattern)):
            return found
    what = "has no ledger.jsonl in it" if path.is_dir() else "does not exist"
    raise AutoFlipError(
        f"{path} {what}; name a ledger file or the folder that was AutoFlip's "
        "ledger_dir or checkpoint_dir."
    )


def _read(name: str, file: Path) -> Run:
    rows, unreadable = parse_rows(file.read_bytes())
    if not rows:
        raise AutoFlipError(
            f"{file} holds no rows of a ledger; name a ledger.jsonl that AutoFlip "
            "wrote, or wait until its first phase is over."
        )
    return Run(name, rows, unreadable)


def _names(files: Sequence[Path]) -> list[str]:
    """Name runs by their folders, as short as keeps them apart."""
    stems = [
        file.resolve().parent.parts + ((file.stem,) if file.name != LEDGER else ())
        for file in files
    ]
    for depth in range(1, max(map(len, stems), default=1) + 1):
        names = [visible("/".join(stem[-depth:])) for stem in stems]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


# --- Figures ---


def summarise(run: Run) -> dict[str, Any]:
    """Put a run into figures, for a table or a program; None is what is not known.

    Bytes, MACs and seconds are totals of all nodes, exploration included; MACs of as
    many messages as ``"unknown_macs"`` says are not known, and add nothing. Values are
    means of the last five evaluations.
    """
    line, plan, dense = run.curve, run.deployed, run.dense_moved()
    moved, explored = (
        [known_sum(rows, key) for key in ("bytes_down", "bytes_up", "macs")]
        for rows in (run.nodes, run.exploring)
    )
    reference = None if dense is None else int(dense[-1])
    return {
        "name": run.name,
        "rounds": run.rounds,
        "nodes": len({row["node"] for row in run.nodes}),
        "metric": run.metric,
        "value": None if line is None else _recent(line.top1),
        "dense_value": None if line is None else _recent(line.dense_top1),
        "parameters": plan.get("parameters"),
        "dense_parameters": plan.get("dense_parameters"),
        "macs_per_example": plan.get("macs"),
        "dense_macs_per_example": plan.get("dense_macs"),
        "bytes_down": moved[0],
        "bytes_up": moved[1],
        "exploration_bytes": explored[0] + explored[1],
        "dense_bytes": reference,
        "saved_bytes": None if reference is None else reference - moved[0] - moved[1],
        "client_macs": moved[2],
        "exploration_macs": explored[2],
        "unknown_macs": unknown(run.nodes, "macs"),
        "node_seconds": known_sum(run.nodes, "seconds"),
        "failures": count_failures(run.nodes),
        "unreadable_rows": run.unreadable,
    }


def known_sum(rows: Iterable[Row], key: str) -> Any:
    """Add up what is known of a column; None if there are rows, but nothing is."""
    values = [row.get(key) for row in rows]
    known = [value for value in values if value is not None]
    return sum(known) if known or not values else None


def count_failures(rows: Iterable[Row]) -> int:
    """Count messages without a valid reply."""
    return sum(row["status"] != "ok" for row in rows)


def _recent(values: NDArray[np.float64]) -> float | None:
    known = values[-WINDOW:][np.isfinite(values[-WINDOW:])]
    return float(known.mean()) if known.size else None


def units_kept(run: Run) -> dict[str, list[int]]:
    """Give the units that each group of layers kept, from round 0 on.

    One count a round, or :data:`MOST_COLUMNS` of more rounds; empty if no plan is
    known. Groups that a plan does not name are left out.
    """
    plans = run.plans or run.of_phase("server")
    at = {row["round"]: row["plan"].get("units") or {} for row in plans}
    if not at:
        return {}
    begins, count = sorted(at), min(run.rounds + 1, MOST_COLUMNS)
    rounds = np.linspace(0, run.rounds, count).round()
    places = np.searchsorted(begins, rounds, "right") - 1
    valid = [at[begins[place]] for place in places.clip(0)]
    named = set.intersection(*map(set, at.values()))
    return {
        name: [units[name] for units in valid] for name in valid[0] if name in named
    }


def node_figures(run: Run) -> list[dict[str, Any]]:
    """Add up what each node moved, computed (None if unknown) and took, most first."""
    rows: dict[int, list[Row]] = defaultdict(list)
    for row in run.nodes:
        rows[row["node"]].append(row)
    found = [
        {
            "node": node,
            "messages": len(own),
            **{key: known_sum(own, key) for key in ("bytes_down", "bytes_up", "macs")},
            "unknown_macs": unknown(own, "macs"),
            "seconds": known_sum(own, "seconds") or 0.0,
            "failures": count_failures(own),
        }
        for node, own in rows.items()
    ]
    return sorted(found, key=lambda n: -n["bytes_down"] - n["bytes_up"])


def failures(run: Run) -> list[dict[str, Any]]:
    """Group what went wrong by phase, status and reason, most frequent first."""
    alike: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in run.nodes:
        if row["status"] != "ok":
            alike[row["phase"], row["status"], row["reason"]].append(row)
    found = [
        {
            **dict(zip(("phase", "status", "reason"), key, strict=True)),
            "count": len(rows),
            "nodes": len({row["node"] for row in rows}),
            "first_round": min(row["round"] for row in rows),
            "last_round": max(row["round"] for row in rows),
        }
        for key, rows in alike.items()
    ]
    return sorted(found, key=lambda fault: -int(fault["count"]))
