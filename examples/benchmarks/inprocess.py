"""What the in-process backend costs over bare training loops, as a ratio.

The same FedAvg twice, in turns: once as a plain loop over nodes with an average, once
through the strategy, the client, serialised messages and the ledger. Neither evaluates.
Seconds are of the processor: nothing here waits, and what else runs does not count.
"""

import argparse
import json
import logging
import random
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import torch
from flwr.app import ArrayRecord

from examples.inprocess import InProcessGrid

from ..paper.federation import Setting, make_client_app, make_strategy
from ..paper.training import train


def plain_loop(setting: Setting, rounds: int) -> float:
    """Run FedAvg as a plain loop; give its seconds."""
    task, scale, _ = setting.parts
    data = setting.load()
    model = task.build(scale)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    start = time.process_time()
    for _ in range(rounds):
        nodes = random.sample(range(data.num_nodes), scale.nodes_per_round)
        total = sum(len(data.train[node]) for node in nodes)
        mean = {name: torch.zeros_like(w) for name, w in weights.items()}
        for node in nodes:
            model.load_state_dict(weights)
            train(
                model,
                data.train[node],
                scale.local_epochs,
                scale.batch_size,
                scale.lr,
                scale.weight_decay,
            )
            share = len(data.train[node]) / total
            for name, value in model.state_dict().items():
                mean[name] += (share * value).to(mean[name].dtype)
        weights = mean
    return time.process_time() - start


def in_process(setting: Setting, rounds: int, folder: Path) -> float:
    """Run the same through the strategy; give its seconds."""
    task, scale, _ = setting.parts
    model = task.build(scale)
    strategy = make_strategy(setting, model, folder)
    nodes = setting.load().num_nodes
    grid = InProcessGrid(make_client_app(), nodes, asdict(setting))
    arrays = ArrayRecord(model.state_dict())
    start = time.process_time()
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds)
    return time.process_time() - start


def main() -> None:
    """Measure every task that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", default=["mnist"])
    parser.add_argument("--scale", default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", default="", help="folder of data sets; else the hub")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel("ERROR")
    options.out.mkdir(parents=True, exist_ok=True)
    ratios = {}
    for task in options.task:
        setting = Setting(task, options.scale, "fedavg", 0, data=options.data)
        setting.load()
        times: list[tuple[float, float]] = []
        for _ in range(options.repeats):
            random.seed(setting.seed)  # the same nodes, so the same work
            bare = plain_loop(setting, options.rounds)
            times.append((bare, in_process(setting, options.rounds, options.out)))
        bare, ours = (statistics.median(column) for column in zip(*times, strict=True))
        ratios[task] = ours / bare
        print(f"{task}: in-process over bare loops {ours / bare:.3f}")
    (options.out / "inprocess.json").write_text(json.dumps(ratios, indent=1) + "\n")


if __name__ == "__main__":
    main()
