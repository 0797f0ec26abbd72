"""What noise on explorers' reports does to the plan, and to accuracy.

``python -m examples.benchmarks.privacy`` lets all nodes explore, each with noise of its
own (local differential privacy, delta 1e-5), and compares the plan with the one made
without noise and bound: the share of units in common (Jaccard), beside that of units
drawn at random, as many. Two fifths of each layer's units stay. Twenty nodes have 200
pictures each, 200 nodes have 20: noise averages out over nodes, not over pictures.
``"units"`` sends one number a unit, ``"deviation"`` one a weight. Accuracy as in
``examples.benchmarks.robustness``, which says more. Needs ``flwr-autoflip[privacy]``.
"""

import argparse
import json
import logging
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from flwr_autoflip.wire.privacy import ReportPrivacy

from .explored import Cell, Results, measure, overlap
from .robustness import differences, layout, mean_of, write_table

THRESHOLD = "quantile:0.6"
"""Two fifths of each layer stay: "auto" would take noise for mass, and keep more."""

EPSILONS = ("inf", "32", "8", "4", "1")
CASES = (("units", 20), ("deviation", 20), ("units", 200))


def measure_cell(
    results: Results, payload: str, nodes: int, epsilon: str, seed: int, rounds: int
) -> dict[str, Any]:
    """Measure one cell; ``epsilon=""`` is a report without bound and noise."""
    options: dict[str, Any] = {"exploration_payload": payload, "warm_start": False}
    options |= {"threshold": THRESHOLD}
    privacy = f"epsilon:{epsilon}" if epsilon else ""
    name = {"payload": payload, "nodes": nodes, "epsilon": epsilon}
    cell = Cell(seed, options, nodes, privacy=privacy)
    return measure(results, name, cell, rounds)


def by_chance(counts: list[int], seed: int) -> float:
    """Overlap of plans drawn at random, of the same size in each layer."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(100):
        one, other = [], []
        for group in layout().groups:
            units = np.arange(group.first, group.first + group.size)
            inside = [u for u in counts if group.first <= u < group.first + group.size]
            one += inside
            other += rng.choice(units, len(inside), replace=False).tolist()
        found.append(overlap(one, other))
    return statistics.mean(found)


def measure_line(
    results: Results, payload: str, nodes: int, epsilon: str, seeds: int, rounds: int
) -> dict[str, Any]:
    """Measure a line of the table: means over seeds."""
    plain = [measure_cell(results, payload, nodes, "", s, rounds) for s in range(seeds)]
    rows = [
        measure_cell(results, payload, nodes, epsilon, s, rounds) for s in range(seeds)
    ]
    pairs = list(zip(rows, plain, strict=True))
    line = {
        "payload": payload,
        "nodes": nodes,
        "epsilon": epsilon,
        "noise_std": ReportPrivacy(float(epsilon)).noise_std(),
        "units": statistics.mean(len(row["kept"]) for row in rows),
        "overlap": statistics.mean(overlap(a["kept"], b["kept"]) for a, b in pairs),
        "chance": statistics.mean(by_chance(a["kept"], 0) for a, _ in pairs),
    }
    if rounds:
        line |= {"top1": mean_of(rows), "difference": differences(rows, plain)}
        line["top1_plain"] = mean_of(plain)
    return line


def main() -> None:
    """Measure what is missing; write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20, help="for 20 nodes, units")
    parser.add_argument("--epsilons", nargs="+", default=list(EPSILONS))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/privacy"))
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel("ERROR")
    results = Results(options.out / "cells.jsonl")
    lines = []
    for payload, nodes in CASES:
        rounds = options.rounds if (payload, nodes) == CASES[0] else 0
        for epsilon in options.epsilons:
            line = measure_line(results, payload, nodes, epsilon, options.seeds, rounds)
            lines.append(line)
    command = " ".join(["python -m examples.benchmarks.privacy", *sys.argv[1:]])
    found = {"command": command, "seeds": options.seeds, "rounds": options.rounds}
    (options.out / "privacy.json").write_text(json.dumps(found | {"lines": lines}))
    head = ["report", "nodes", "epsilon", "noise a value", "units"]
    head += ["overlap", "by chance", "top-1"]
    texts = [
        [
            line["payload"],
            str(line["nodes"]),
            line["epsilon"],
            f"{line['noise_std']:.2f}",
            f"{line['units']:.0f}",
            f"{line['overlap']:.2f}",
            f"{line['chance']:.2f}",
            f"{line['top1']:.3f} ({line['difference']})" if "top1" in line else "",
        ]
        for line in lines
    ]
    print(write_table(options.out / "privacy.md", f"`{command}`", head, texts))


if __name__ == "__main__":
    main()
