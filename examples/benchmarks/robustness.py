"""What explorers that misbehave do to the plan, and to accuracy.

``python -m examples.benchmarks.robustness`` lets all of 20 nodes (two digits each, the
quickstart's data and model) explore, a share of them badly, under four ways of
combining what they report. A plan's overlap is the share of units in common with the
plan that the same rule makes of honest explorers (Jaccard); accuracy is the deployable
model's after ``--rounds`` rounds of honest training, mean of the last five evaluations.
Nobody's update starts the model (``warm_start=False``), so that a bad report can do
nothing but make a bad plan; ``--warm`` measures the guided preset's warm start, which
averages explorers' updates as any round does. Cells that are in the results already
are not run again.
"""

import argparse
import json
import logging
import random
import statistics
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.tracing.trace import trace

from .explored import (
    EXAMPLE,
    Attack,
    Cell,
    Moved,
    Results,
    first_model,
    measure,
    overlap,
)

NODES = 20
RULES: dict[str, dict[str, Any]] = {
    "raw mean": {"client_scale": "raw"},
    "guided": {},
    "trimmed-mean:0.2": {"combination": "trimmed-mean:0.2"},
    "median": {"combination": "median"},
}
ATTACKS = {
    "silent": "do not report, for comparison",
    "flip": "train on labels 9 - y",
    "huge": "noise of 1000 times their norm",
    "large": "noise of 9 times their norm, which is not refused",
    "invert": "weights that moved least moved most",
    "keep": "only an eighth of each layer moved, units that the plan drops",
    "kill": "nothing moved in units that the plan keeps",
}
"""The last four stay below the limit: 9 times what they honestly moved."""

BELOW_THE_LIMIT = 9.0


@lru_cache(maxsize=1)
def layout() -> Layout:
    """Trace the model."""
    return trace(first_model(0), EXAMPLE)


def bad_nodes(seed: int, percent: int) -> frozenset[int]:
    """Draw who misbehaves; a smaller share is part of a larger one."""
    order = random.Random(seed).sample(range(NODES), NODES)
    return frozenset(order[: NODES * percent // 100])


# --- Attacks: from the honest update to the one that is sent ---


def rescaled(made: Moved, honest: Moved, factor: float) -> Moved:
    """Bring every tensor to ``factor`` times the norm that it honestly has."""
    scales = {
        n: factor * np.linalg.norm(honest[n]) / (np.linalg.norm(made[n]) or 1)
        for n in made
    }
    return {n: (made[n] * scales[n]).astype(np.float32) for n in made}


def noise(moved: Moved, factor: float) -> Moved:
    """Replace an update by noise."""
    rng = np.random.default_rng(int(1e6 * abs(moved["fc2.bias"][0])))
    drawn = {n: rng.standard_normal(v.shape, np.float32) for n, v in moved.items()}
    return rescaled(drawn, moved, factor)


def invert(moved: Moved) -> Moved:
    """Turn deviations round: what was the largest is 0, what was 0 the largest."""
    turned = {n: np.sqrt(np.square(v).max() - np.square(v)) for n, v in moved.items()}
    return rescaled(turned, moved, BELOW_THE_LIMIT)


def own_parameters(units: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Mark the parameters that belong to these units."""
    marked = {}
    for spec in layout().tensors:
        marked[spec.name] = np.zeros(spec.shape, bool)
        for axis in spec.own_axes:
            owner = np.asarray(spec.owners[axis])
            mine = np.where(owner >= 0, units[np.maximum(owner, 0)], False)
            shape = [-1 if a == axis else 1 for a in range(len(spec.shape))]
            marked[spec.name] |= mine.reshape(shape)
    return marked


def move_only(moved: Moved, units: NDArray[np.bool_], value: bool) -> Moved:
    """Let only these units move, all weights alike or as they honestly do."""
    marked = own_parameters(units)
    made = {}
    for name, values in moved.items():
        inside = np.ones_like(values) if value else values
        made[name] = np.where(marked[name], inside, 0) if marked[name].any() else values
    return rescaled(made, moved, BELOW_THE_LIMIT)


def attack_of(kind: str, kept: list[int]) -> Attack | None:
    """Give what a kind of attacker does, who knows the honest plan."""
    alive = np.zeros(layout().num_units, bool)
    alive[kept] = True
    match kind:
        case "huge":
            return lambda moved: noise(moved, 1000)
        case "large":
            return lambda moved: noise(moved, BELOW_THE_LIMIT)
        case "invert":
            return invert
        case "keep":
            chosen = np.zeros_like(alive)
            for group in layout().groups:
                own = np.arange(group.first, group.first + group.size)
                chosen[own[~alive[own]][: group.size // 8]] = True
            return lambda moved: move_only(moved, chosen, value=True)
        case "kill":
            return lambda moved: move_only(moved, ~alive, value=False)
        case _:
            return None


# --- Cells ---


def measure_cell(
    results: Results, rule: str, kind: str, percent: int, seed: int, rounds: int
) -> dict[str, Any]:
    """Measure one cell, and the honest one whose plan attackers know."""
    options = {**RULES[rule], "warm_start": False}
    honest = Cell(seed, options, NODES)
    name = {"rule": rule, "attack": "none", "percent": 0}
    if not percent:
        return measure(results, name, honest, rounds)
    known = measure(results, name, honest, 0)["kept"]
    cell = Cell(
        seed,
        options,
        NODES,
        bad_nodes(seed, percent),
        flips=kind == "flip",
        silent=kind == "silent",
        attack=attack_of(kind, known),
    )
    name = {"rule": rule, "attack": kind, "percent": percent}
    row = measure(results, name, cell, rounds)
    return {**row, "overlap": overlap(row["kept"], known)}


def measure_warm(
    results: Results, rule: str, kind: str, percent: int, seed: int, rounds: int
) -> dict[str, Any]:
    """Measure a cell with the guided preset's warm start."""
    attack = attack_of(kind, []) if percent else None
    bad = bad_nodes(seed, percent)
    cell = Cell(seed, RULES[rule], NODES, bad, bool(percent and kind == "flip"))
    cell = Cell(cell.seed, cell.options, NODES, bad, cell.flips, attack=attack)
    name = {"rule": rule, "attack": kind if percent else "none", "percent": percent}
    return measure(results, {**name, "warm": True}, cell, rounds, warm=True)


def mean_of(rows: list[dict[str, Any]]) -> float:
    """Mean accuracy over seeds, each a mean of its last evaluations."""
    return statistics.mean(statistics.mean(row["top1"]) for row in rows)


def differences(rows: list[dict[str, Any]], clean: list[dict[str, Any]]) -> str:
    """Show a change in accuracy over seeds: mean and standard error, in points."""
    pairs = zip(rows, clean, strict=True)
    lost = [100 * (np.mean(a["top1"]) - np.mean(b["top1"])) for a, b in pairs]
    error = statistics.stdev(lost) / len(lost) ** 0.5 if len(lost) > 1 else float("nan")
    return f"{statistics.mean(lost):+.1f} ±{error:.1f}"


def table_of(
    results: Results, options: argparse.Namespace
) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
    """Measure every line of the table: its texts, and its cells for the JSON file."""
    seeds, rounds = range(options.seeds), options.rounds
    rules, percents = options.rules, options.percents
    clean = {
        rule: [measure_cell(results, rule, "none", 0, s, rounds) for s in seeds]
        for rule in rules
    }
    raw = [measure_cell(results, "raw mean", "none", 0, s, 0) for s in seeds]
    texts, cells = ["none, 0 %"], []
    for rule in rules:
        pairs = zip(clean[rule], raw, strict=True)
        same = statistics.mean(overlap(a["kept"], b["kept"]) for a, b in pairs)
        cell = {"rule": rule, "attack": "none", "percent": 0, "overlap_raw": same}
        text = f"({same:.2f})"
        if rounds:
            cell["top1"] = mean_of(clean[rule])
            text += f" {cell['top1']:.3f}"
        texts.append(text)
        cells.append(cell)
    yield texts, cells
    for kind in options.attacks:
        for percent in percents:
            texts, cells = [f"{kind}, {percent} %"], []
            for rule in rules:
                rows = [
                    measure_cell(results, rule, kind, percent, s, rounds) for s in seeds
                ]
                same = statistics.mean(row["overlap"] for row in rows)
                refused = statistics.mean(row["refused"] for row in rows)
                text = f"{same:.2f}"
                cell = {"rule": rule, "attack": kind, "percent": percent}
                cell |= {"overlap": same, "refused": refused}
                if rounds:
                    text += f", {differences(rows, clean[rule])}"
                    cell["top1"] = mean_of(rows)
                    cell["difference"] = differences(rows, clean[rule])
                texts.append(text)
                cells.append(cell)
            yield texts, cells


def warm_table(
    results: Results, options: argparse.Namespace
) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
    """Measure the warm start: the explorers' updates are in the model."""
    seeds, rounds = range(options.seeds), options.rounds
    clean = {
        rule: [measure_warm(results, rule, "none", 0, s, rounds) for s in seeds]
        for rule in options.rules
    }
    yield ["none, 0 %", *(f"{mean_of(rows):.3f}" for rows in clean.values())], []
    for kind in options.attacks:
        for percent in options.percents:
            texts, cells = [f"{kind}, {percent} %"], []
            for rule in options.rules:
                rows = [
                    measure_warm(results, rule, kind, percent, s, rounds) for s in seeds
                ]
                texts.append(differences(rows, clean[rule]))
                cell = {"rule": rule, "attack": kind, "percent": percent, "warm": True}
                cells.append({**cell, "top1": mean_of(rows), "difference": texts[-1]})
            yield texts, cells


def write_table(path: Path, title: str, head: list[str], lines: list[list[str]]) -> str:
    """Write a Markdown table, and give it."""
    rows = [head, ["---"] + ["--:"] * (len(head) - 1), *lines]
    text = f"{title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
    path.write_text(text)
    return text


def main() -> None:
    """Measure what is missing; write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20, help="0: overlaps alone")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument("--percents", nargs="+", type=int, default=[10, 20, 30])
    parser.add_argument("--warm", action="store_true", help="measure the warm start")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/robustness"))
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel("ERROR")
    results = Results(options.out / "cells.jsonl")
    made = list((warm_table if options.warm else table_of)(results, options))
    name = "warm" if options.warm else "robustness"
    cells = [cell for _, row in made for cell in row]
    command = " ".join(["python -m examples.benchmarks.robustness", *sys.argv[1:]])
    found = {"command": command, "seeds": options.seeds, "rounds": options.rounds}
    (options.out / f"{name}.json").write_text(json.dumps(found | {"cells": cells}))
    head = ["explorers that misbehave", *options.rules]
    text = write_table(
        options.out / f"{name}.md", f"`{command}`", head, [row for row, _ in made]
    )
    print(text)


if __name__ == "__main__":
    main()
