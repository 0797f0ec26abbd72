"""What noise on explorers' reports does to the plan, and to accuracy.

``python -m examples.benchmarks.privacy`` lets all nodes explore, each with noise of its
own (local differential privacy, delta 1e-5), and compares the plan with the one made
without noise and bound: the share of units in common (Jaccard), beside that of units
drawn at random, as many. Two fifths of each layer's units are kept. Twenty nodes have
200 pictures each, 200 nodes have 20: noise averages out over nodes, not over pictures.
Accuracy is the deployable model's after rounds of honest training, mean of the last
five evaluations. Needs ``flwr-autoflip[privacy]``.
"""

import argparse
import logging
import statistics
from collections.abc import Sequence

import numpy as np

from flwr_autoflip.wire.privacy import ReportPrivacy

from .robustness import Cell, Everybody, Outcome, layout, overlap, run

METHOD = Everybody(threshold="quantile:0.6")
"""By numbers of units: a threshold on scores would take noise for importance."""
EPSILONS = ("inf", "32", "8", "4", "1")


def by_chance(kept: Sequence[int], seed: int = 0) -> float:
    """Overlap of plans drawn at random, of the same size in each layer."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(100):
        one, other = [], []
        for group in layout().groups:
            units = np.arange(group.first, group.first + group.size)
            inside = [u for u in kept if group.first <= u < group.first + group.size]
            one += inside
            other += rng.choice(units, len(inside), replace=False).tolist()
        found.append(overlap(one, other))
    return statistics.mean(found)


def explore(nodes: int, epsilon: str, seeds: int, rounds: int) -> list[Outcome]:
    """Run every seed; without an epsilon reports have neither bound nor noise."""
    privacy = f"epsilon:{epsilon}" if epsilon else ""
    return [
        run(Cell(seed, METHOD, nodes, privacy=privacy, rounds=rounds))
        for seed in range(seeds)
    ]


def main() -> None:
    """Measure, and print a table's lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20, help="for 20 nodes")
    parser.add_argument("--nodes", nargs="+", type=int, default=[20, 200])
    parser.add_argument("--epsilons", nargs="+", default=list(EPSILONS))
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel("ERROR")
    for nodes in options.nodes:
        rounds = options.rounds if nodes == 20 else 0
        plain = explore(nodes, "", options.seeds, rounds)
        chance = statistics.mean(by_chance(one.kept) for one in plain)
        print(f"{nodes} nodes, by chance {chance:.2f}")
        for epsilon in options.epsilons:
            noised = explore(nodes, epsilon, options.seeds, rounds)
            pairs = zip(noised, plain, strict=True)
            same = statistics.mean(overlap(a.kept, b.kept) for a, b in pairs)
            std = ReportPrivacy(float(epsilon)).noise_std()
            line = f"epsilon {epsilon}, noise {std:.2f} a value: overlap {same:.2f}"
            if rounds:
                means = [
                    statistics.mean(v for one in some for v in one.top1)
                    for some in (noised, plain)
                ]
                line += f", top-1 {means[0]:.3f} against {means[1]:.3f} without"
            print(line, flush=True)


if __name__ == "__main__":
    main()
