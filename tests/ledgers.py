"""Ledgers made by hand, for tests of what reads them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flwr_autoflip.ledger.ledger import Ledger, node_rows
from flwr_autoflip.ledger.rows import NodeRow

DENSE_UNITS = {"conv1": 16, "conv2": 32, "fc1": 128}
HOSTILE = (
    "[/x]\x1b[2J\n[ERROR] forged \u202e</script><script>alert(1)</script>$\\x$\ud800"
)
"""A name or reason that would do something, were it not only shown."""
DENSE_MESSAGE = {"down": 1000, "up": 1100, "metrics": 100}


def plan_figures(ratio: float) -> dict[str, Any]:
    """What a ledger says of a plan that keeps so much of everything."""
    return {
        "parameters": round(1000 * ratio),
        "zeros": 0,
        "bytes": round(4000 * ratio),
        "dense_parameters": 1000,
        "macs": round(500 * ratio),
        "dense_macs": 500,
        "units": {name: max(1, round(n * ratio)) for name, n in DENSE_UNITS.items()},
    }


def make_ledger(
    folder: Path | None,
    rounds: int,
    nodes: int,
    *,
    ratio: float = 0.25,
    faults: bool = False,
    old: bool = False,
) -> Ledger:
    """Write a run: two explorers, then every node in every round.

    ``old`` ledgers hold no plans of their own; ``faults`` lets nodes fail.
    """
    ledger = Ledger(None if folder is None else folder / "ledger.jsonl")
    generator = np.random.default_rng(rounds)
    first = 9_000_000_000_000_000_000
    for node in range(2):
        ledger.add(NodeRow(0, "explore", first + node, **_cost(1.0)))
    plan = plan_figures(ratio)
    if not old:
        counts = generator.integers(0, 9, (len(DENSE_UNITS), 2, 20)).tolist()
        importance = {
            name: {"top": 0.4, "kept": kept, "pruned": pruned}
            for name, (kept, pruned) in zip(DENSE_UNITS, counts, strict=True)
        }
        row = {"digest": "00", "plan": plan, "dense_units": DENSE_UNITS}
        row |= {"dense_message": DENSE_MESSAGE, "importance": importance}
        ledger.add_plan(0, row)
    for number in range(rounds + 1):
        for node in range(nodes if number else 0):
            failed = faults and generator.random() < 0.1
            status = {"status": "failed", "reason": "<b>out</b> of memory & so on"}
            extra: Any = status | {"bytes_up": 0} if failed else {}
            ledger.add(NodeRow(number, "train", first + node, **_cost(ratio) | extra))
        top1 = 0.9 - 0.8 * 0.9**number
        ledger.add_server(number, {"loss": 1.0, "top1": top1, "dense-top1": top1}, plan)
    return ledger


def _cost(ratio: float) -> Any:
    return {
        "bytes_down": round(1000 * ratio),
        "bytes_up": round(1100 * ratio),
        "parameters": round(1000 * ratio),
        "macs_per_example": round(500 * ratio),
        "examples": 10,
        "forward_macs": 10 * round(500 * ratio),
        "seconds": 0.25,
    }


def write_rows(folder: Path, rows: Iterable[Any]) -> Path:
    """Write rows as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ledger.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_large(folder: Path, rounds: int, nodes: int, groups: int) -> Path:
    """Write a long run's file at once: a deep model, and a plan every round."""
    rows = list(make_ledger(None, rounds, nodes, faults=True).rows)
    first = next(row for row in rows if row["phase"] == "plan")
    rows.remove(first)
    names = [f"features.{n}.block.{n % 4}.conv" for n in range(groups)]
    first |= {"dense_units": dict.fromkeys(names, 256)}
    first |= {"importance": dict.fromkeys(names, first["importance"]["fc1"])}
    generator = np.random.default_rng(0)
    for number in range(rounds):
        kept = generator.integers(20, 257, groups).tolist()
        plan = {**first["plan"], "units": dict(zip(names, kept, strict=True))}
        scores = {} if number else first["importance"]
        rows.append({**first, "round": number, "plan": plan, "importance": scores})
    return write_rows(folder, rows)


def write_hostile(folder: Path) -> Path:
    """A ledger in which every name and reason is a stranger's."""
    text = json.dumps(list(make_ledger(None, 6, 3).rows))
    for name in ("conv1", "top1", "loss", "out of memory"):
        text = text.replace(f'"{name}"', json.dumps(name + HOSTILE))
    rows = json.loads(text)
    for found in node_rows(rows)[:3]:
        found |= {"status": "failed" + HOSTILE, "reason": HOSTILE * 3}
    return write_rows(folder / "[red]\x1b[31m\n<i>$\\x$", rows)
