"""Studies of finished runs, written without training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Small enough to count by hand and to build in no time.
SETTINGS = {
    "nodes": 10,
    "nodes_per_round": 2,
    "rounds": 6,
    "local_epochs": 1,
    "batch_size": 4,
    "lr": 0.05,
    "width": 0.05,
}
RISING = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]  # FedAvg's six rounds
TWICE = [*RISING, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]
UNITS = {"0": 2, "3": 3, "6": 4, "9": 5, "13": 6}


def write_run(
    study: Path,
    method: str,
    top1: Sequence[float],
    round_cost: int,
    exploration: int = 0,
    *,
    seed: int = 0,
    plan: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write one run on MNIST whose every round moves ``round_cost`` bytes, ten times as
    many MACs; give its folder."""
    rounds = len(top1) - 1
    moved = [exploration + round_cost * number for number in range(rounds + 1)]
    config = {"task": "mnist", "scale": "small", "method": method, "seed": seed}
    config |= {"rounds": rounds, "settings": SETTINGS}
    plan = plan or {"parameters": 10, "dense_parameters": 100, "units": {}}
    result = {
        "top1": list(top1),
        "dense_top1": [value / 2 for value in top1],
        "local_top1": [None, *(value / 4 for value in top1[1:])],
        "bytes": moved,
        "macs": [10 * value for value in moved],
        "exploration": {"down": exploration, "up": 0, "macs": 10 * exploration},
        "plan_bytes": 1,
        "lost": 0,
        "seconds": 2.0,
        "training_seconds": 1.0,
        "plan": {"zeros": 0, "macs": 1, "dense_macs": 10, **plan},
        "variances": [1.0 / (1 + number) for number in range(rounds)],
        "backend": "in-process",
    }
    folder = study / "mnist" / method / f"seed{seed}"
    folder.mkdir(parents=True)
    record = {"config": config, "result": result | (changes or {})}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def write_two_seeds(study: Path) -> None:
    """Write FedAvg at 10 a round, AutoFLIP at 4 and 5 to explore, of two seeds each."""
    for seed in (0, 1):
        fedavg = [value + 0.02 * seed for value in RISING]
        write_run(study, "fedavg", fedavg, 10, seed=seed)
        write_run(study, "autoflip", TWICE, 4, 5, seed=seed)
