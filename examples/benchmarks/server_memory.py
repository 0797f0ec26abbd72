"""How much memory a round takes on the server, in dense models above Flower's FedAvg.

Every figure is of a process of its own: the highest resident size during one round (its
K replies included) less the size before it. ``dense`` is an inner strategy that does
more than average, so that it gets dense models, by the same plan or with budgets.
"""

import argparse
import ctypes
import gc
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from flwr.clientapp import ClientApp

from examples.inprocess import InProcessGrid

from .server import MODELS, autoflip_round, fedavg_round

STATUS = Path("/proc/self/status")
ROUNDS: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "average, 1/2 kept": {"threshold": "2x"},
    "average, all kept": {"threshold": "1x"},
    "dense, 1/2 kept": {"threshold": "2x", "averages": False},
    "dense, all kept": {"threshold": "1x", "averages": False},
}
Row = dict[str, Any]


def resident(which: str) -> int:
    """Read a resident size of this process in bytes: ``VmRSS`` now, ``VmHWM`` peak."""
    found = re.search(rf"{which}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None, f"Linux only: {STATUS} has no {which}"
    return int(found[1]) * 1024


def one_round(model_name: str, round_name: str, nodes: int) -> int:
    """Run a round in this process; give by how much its memory peaked, in bytes."""
    build, example = MODELS[model_name]
    model, grid = build(), InProcessGrid(ClientApp(), nodes)
    options = ROUNDS[round_name]
    if options:
        run = autoflip_round(model, example, grid, **options)
    else:
        run = fedavg_round(model, grid)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what tracing left would hide what a round takes
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    run()
    return resident("VmHWM") - before


def measure(model_name: str, nodes: int) -> list[Row]:
    """Run every round in a process of its own."""
    parameters = sum(p.numel() for p in MODELS[model_name][0]().parameters())
    rows: list[Row] = []
    for name in ROUNDS:
        command = [sys.executable, "-m", __spec__.name, "--one", model_name, name]
        command += ["--nodes", str(nodes)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        dense = int(done.stdout) / (4 * parameters)
        above = dense - rows[0]["dense_models"] if rows else 0.0
        row = {"model": model_name, "parameters": parameters, "nodes": nodes}
        row |= {"round": name, "dense_models": round(dense, 2)}
        rows.append(row | {"above_fedavg": round(above, 2)})
        print(
            f"{model_name}, {nodes} nodes, {name}: {dense:.1f} dense models, ", end=""
        )
        print(f"{above:+.1f} above FedAvg", flush=True)
    return rows


def main() -> None:
    """Measure all models and numbers of nodes; print and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--nodes", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel("ERROR")
    torch.set_num_threads(1)
    if options.one:
        print(one_round(*options.one, options.nodes[0]))
        return
    rows = [row for m in options.models for n in options.nodes for row in measure(m, n)]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "server_memory.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
