"""How the small scales were set: a small grid for FedAvg alone, a task.

``python -m examples.paper.search TASK FIELD=VALUES ... --data DIR`` appends its
figures to ``search.json``. Seed 100, which no table uses, or ``--seed`` another such;
what counts is accuracy on the validation part, the mean of the last five rounds. The
test set is not looked at.
"""

import argparse
import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .tasks import TASKS, Federation, Scale, Task, find_task, load
from .training import evaluate, train

SEED = 100
RECORD = Path(__file__).with_name("search.json")
LAST = 5
VARIED = (
    *("rounds", "width", "depth", "train_examples", "local_epochs", "batch_size"),
    *("lr", "server_momentum"),
)


def fedavg(
    task: Task, scale: Scale, federation: Federation, seed: int
) -> dict[str, Any]:
    """Train by FedAvg in this process; give accuracy and seconds.

    Returns
    -------
    dict of str to float
        ``validation`` top-1, mean of the last five rounds; ``seconds`` of training
        alone.
    """
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = task.build(scale)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    velocity = {name: torch.zeros(tensor.shape) for name, tensor in state.items()}
    seconds, tops = 0.0, []
    for server_round in range(1, scale.rounds + 1):
        nodes = generator.permutation(federation.num_nodes)[: scale.nodes_per_round]
        total = sum(len(federation.train[node]) for node in nodes)
        mean = {name: torch.zeros_like(v) for name, v in velocity.items()}
        start = time.process_time()
        for node in nodes.tolist():
            model.load_state_dict(state)
            train(
                model,
                federation.train[node],
                scale.local_epochs,
                scale.batch_size,
                scale.lr,
                scale.weight_decay,
                seed=seed * 10**6 + server_round * 10**3 + node,
            )
            share = len(federation.train[node]) / total
            for name, tensor in model.state_dict().items():
                mean[name] += share * tensor
        seconds += time.process_time() - start
        for name, tensor in state.items():
            velocity[name].mul_(scale.server_momentum).add_(mean[name] - tensor)
            tensor.add_(velocity[name].to(tensor.dtype))
        if server_round > scale.rounds - LAST:
            model.load_state_dict(state)
            tops.append(evaluate(model, federation.validation)[1])
    return {"validation": float(np.mean(tops)), "seconds": seconds}


def main() -> None:
    """Try every combination of the values given, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("tries", nargs="*", help="such as lr=0.03,0.1 batch_size=16,32")
    parser.add_argument("--data", type=Path, help="folder of the files")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    task = find_task(options.task)
    fields = dict(part.split("=") for part in options.tries)
    grid = {name: json.loads(f"[{values}]") for name, values in fields.items()}
    for values in product(*grid.values()):
        changes = dict(zip(grid, values, strict=True))
        scale = replace(task.scales["small"], **changes)
        federation = load(task, scale, options.seed, options.data)
        figures = fedavg(task, scale, federation, options.seed)
        row = {"task": task.name, "seed": options.seed} | {
            name: getattr(scale, name) for name in VARIED
        }
        row |= {name: round(value, 4) for name, value in figures.items()}
        print(json.dumps(row), flush=True)
        known = json.loads(RECORD.read_text()) if RECORD.exists() else []
        lines = ",\n".join(json.dumps(one) for one in [*known, row])
        RECORD.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
