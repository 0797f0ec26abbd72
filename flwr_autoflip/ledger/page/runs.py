"""A run as its ledger tells it: what the page and the command line show."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import AutoFlipError, visible
from ..headline import headline
from ..ledger import dense_bytes, node_rows, unknown
from ..rows import parse_rows
from .curves import WINDOW, Curve, curve, spent_until

LEDGER = "ledger.jsonl"
MOST_CELLS = 20_000_000
"""Groups times rounds of one run that are shown."""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """One run.

    Parameters
    ----------
    name : str
        What it is called beside others.
    rows : list of dict
        Its ledger's whole rows.
    unreadable : int (default: 0)
        Lines of the ledger that were no whole rows.
    """

    name: str
    rows: Rows
    unreadable: int = 0

    @cached_property
    def nodes(self) -> Rows:
        """Rows of nodes."""
        return node_rows(self.rows)

    @cached_property
    def server(self) -> Rows:
        """Rows of the server's evaluations, round 0 first."""
        return [row for row in self.rows if row["phase"] == "server"]

    @cached_property
    def plans(self) -> Rows:
        """Rows of plans, each from the round in which it began to hold."""
        return [row for row in self.rows if row["phase"] == "plan"]

    @cached_property
    def provenance(self) -> Rows:
        """What the run was made with, a row each time it was started."""
        return [row for row in self.rows if row["phase"] == "run"]

    @cached_property
    def rounds(self) -> int:
        """The last round of which anything is known."""
        return max((row["round"] for row in self.rows), default=0)

    @cached_property
    def metric(self) -> str | None:
        """The server's metric to show; None if it never evaluated."""
        metrics = self.server[-1]["metrics"] if self.server else {}
        found = headline(metrics)
        return None if found is None else found[0]

    @cached_property
    def curve(self) -> Curve | None:
        """Accuracy and costs after each round; None without evaluations."""
        return None if self.metric is None else curve(self.rows, self.metric)

    @cached_property
    def dense_message(self) -> dict[str, int] | None:
        """Bytes of the dense model as a message; None in ledgers without plans."""
        return self.plans[-1].get("dense_message") if self.plans else None

    @cached_property
    def deployed(self) -> dict[str, Any]:
        """Sizes of the model that was evaluated last, or planned last; or empty."""
        last = (self.server or self.plans)[-1:]
        return dict(last[0]["plan"]) if last else {}

    @cached_property
    def exploring(self) -> Rows:
        """Rows that are spent on exploring and asking for budgets."""
        return [row for row in self.nodes if row["phase"] in ("explore", "budget")]

    def spent(self, *keys: str) -> NDArray[np.float64]:
        """Sums of columns until the end of every round, ``(rounds + 1,)``."""
        rounds = np.arange(self.rounds + 1)
        columns = [spent_until(self.rows, rounds, key) for key in keys]
        return np.asarray(np.sum(columns, axis=0))

    @cached_property
    def dense_moved(self) -> NDArray[np.float64] | None:
        """Bytes that the inner strategy alone would have moved, ``(rounds + 1,)``."""
        if self.dense_message is None:
            return None
        moved = np.zeros(self.rounds + 1)
        for row in self.nodes:
            moved[row["round"]] += dense_bytes(row, self.dense_message)
        return np.cumsum(moved)

    @cached_property
    def dense_spent(self) -> NDArray[np.float64] | None:
        """MACs of the dense model for the rounds' work, ``(rounds + 1,)``.

        What nodes did, times what the dense model takes over what theirs takes. None
        where that is not known; work of which nothing is known adds nothing.
        """
        dense = self.deployed.get("dense_macs")
        if dense is None:
            return None
        spent = np.zeros(self.rounds + 1)
        for row in self.nodes:
            macs, own = row.get("macs"), row.get("macs_per_example")
            if row["phase"] in ("train", "evaluate") and macs and own:
                spent[row["round"]] += macs * dense / own
        return np.cumsum(spent)


# --- Reading ---


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read runs from what a user names.

    Parameters
    ----------
    paths : sequence of Path
        Ledger files, folders with a ``ledger.jsonl``, or folders with such folders one
        or two levels below.

    Returns
    -------
    list of Run
        Each with a name of its own.

    Raises
    ------
    AutoFlipError
        If there is no ledger, or one is empty or no ledger.
    """
    files = [file for path in paths for file in _ledgers(path)]
    names = _names(files)
    return [_read(name, file) for name, file in zip(names, files, strict=True)]


def _ledgers(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / LEDGER).is_file():
        return [path / LEDGER]
    below = sorted(path.glob(f"*/{LEDGER}")) or sorted(path.glob(f"*/*/{LEDGER}"))
    if not below:
        what = "has no ledger.jsonl in it" if path.is_dir() else "does not exist"
        raise AutoFlipError(
            f"{path} {what}; name a ledger file or the folder that was AutoFlip's "
            "ledger_dir or checkpoint_dir."
        )
    return below


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

    Returns
    -------
    dict
        Bytes, MACs and seconds are totals of all nodes, exploration included; MACs of
        as many messages as ``"unknown_macs"`` says are not known, and add nothing.
        Values are means of the last five evaluations.
    """
    line, plan = run.curve, run.deployed
    down, up = (
        sum(row[key] for row in run.nodes) for key in ("bytes_down", "bytes_up")
    )
    dense = run.dense_moved
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
        "bytes_down": down,
        "bytes_up": up,
        "exploration_bytes": sum(
            row["bytes_down"] + row["bytes_up"] for row in run.exploring
        ),
        "dense_bytes": reference,
        "saved_bytes": None if reference is None else reference - down - up,
        "client_macs": known_sum(run.nodes, "macs"),
        "exploration_macs": known_sum(run.exploring, "macs"),
        "unknown_macs": unknown(run.nodes, "macs"),
        "node_seconds": known_sum(run.nodes, "seconds"),
        "failures": sum(row["status"] != "ok" for row in run.nodes),
        "unreadable_rows": run.unreadable,
    }


def known_sum(rows: Iterable[dict[str, Any]], key: str) -> Any:
    """Add up what is known of a column; None if there are rows, but nothing is."""
    values = [row.get(key) for row in rows]
    known = [value for value in values if value is not None]
    return sum(known) if known or not values else None


def _recent(values: NDArray[np.float64]) -> float | None:
    known = values[-WINDOW:][np.isfinite(values[-WINDOW:])]
    return float(known.mean()) if known.size else None


def units_kept(run: Run) -> dict[str, list[int]]:
    """Give the units that each group of layers kept in every round.

    Returns
    -------
    dict of str to list of int
        Group name to ``rounds + 1`` counts, from round 0; empty if no plan is known.
        Groups that a plan does not name are left out.

    Raises
    ------
    AutoFlipError
        If it were more than :data:`MOST_CELLS` counts.
    """
    plans = run.plans or run.server
    at: dict[int, dict[str, int]] = {
        row["round"]: row["plan"].get("units", {}) for row in plans
    }
    if not at:
        return {}
    held = at[min(at)]
    named = set.intersection(*map(set, at.values()))
    kept: dict[str, list[int]] = {name: [] for name in held if name in named}
    if len(kept) * (run.rounds + 1) > MOST_CELLS:
        raise AutoFlipError(
            f"{run.name}: {len(kept)} groups over {run.rounds} rounds are too many to "
            "show; name a ledger of a part of the run."
        )
    for number in range(run.rounds + 1):
        held = at.get(number, held)
        for name, counts in kept.items():
            counts.append(held[name])
    return kept


def shares_kept(run: Run) -> dict[str, list[float]]:
    """Give :func:`units_kept` as shares of the dense model's, or of the most there."""
    dense, kept = dense_units(run), units_kept(run)
    whole = {
        name: max(1, dense.get(name, max(counts))) for name, counts in kept.items()
    }
    return {
        name: [min(1.0, count / whole[name]) for count in counts]
        for name, counts in kept.items()
    }


def dense_units(run: Run) -> dict[str, int]:
    """Give the units of the dense model's groups; empty where a ledger lacks them."""
    return dict(run.plans[-1]["dense_units"]) if run.plans else {}


def node_figures(run: Run) -> list[dict[str, Any]]:
    """Add up what each node moved, computed and took, most bytes first.

    MACs are None where none of a node's is known.
    """
    rows: dict[int, Rows] = defaultdict(list)
    for row in run.nodes:
        rows[row["node"]].append(row)
    found = [
        {
            "node": node,
            "bytes_down": known_sum(own, "bytes_down"),
            "bytes_up": known_sum(own, "bytes_up"),
            "macs": known_sum(own, "macs"),
            "unknown_macs": unknown(own, "macs"),
            "messages": len(own),
            "failures": sum(row["status"] != "ok" for row in own),
            "seconds": known_sum(own, "seconds") or 0.0,
        }
        for node, own in rows.items()
    ]
    return sorted(found, key=lambda n: -n["bytes_down"] - n["bytes_up"])


def failures(run: Run) -> list[dict[str, Any]]:
    """Group what went wrong by phase, status and reason, most frequent first."""
    rounds: dict[tuple[str, str, str], Counter[int]] = defaultdict(Counter)
    nodes: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for row in run.nodes:
        if row["status"] != "ok":
            key = (row["phase"], row["status"], row["reason"])
            rounds[key][row["round"]] += 1
            nodes[key].add(row["node"])
    found = [
        {
            "phase": phase,
            "status": status,
            "reason": reason,
            "count": sum(counts.values()),
            "nodes": len(nodes[phase, status, reason]),
            "first_round": min(counts),
            "last_round": max(counts),
        }
        for (phase, status, reason), counts in rounds.items()
    ]
    return sorted(found, key=lambda f: -f["count"])
