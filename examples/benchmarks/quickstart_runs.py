"""Variants of the quickstart, in one process: accuracies and costs.

``python -m examples.benchmarks.quickstart_runs dtypes`` compares what fewer bits a
value do, ``budgets`` what weak nodes cost: a third of the nodes carries a quarter of
the dense model's MACs, a third half, a third all of it; beside it the same run with
nodes that carry the whole plan, and one in which everybody trains the quarter.
"""

import argparse
import json
import logging
import random
import statistics
import sys
import tomllib
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from flwr_autoflip.ledger.ledger import read_ledger, total
from flwr_autoflip.ledger.page.curves import curve

from ..inprocess import InProcessGrid

APP = Path(__file__).parents[1] / "quickstart"
NODES = 20
EXACT = {"value-dtype": "float32"}
GUIDED, L1 = {"method": "autoflip", **EXACT}, {"method": "l1", **EXACT}
QUARTER, MOST, THIRDS = {"macs": 0.25}, {"macs": 0.75}, {"budgets": "thirds"}
STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "dtypes": {
        dtype: {"value-dtype": dtype} for dtype in ("float32", "float16", "int8")
    },
    "budgets": {
        "dense, all whole": {"method": "dense", **EXACT},
        "dense, thirds": {"method": "dense", **EXACT} | THIRDS,
        "l1, all a quarter": L1 | QUARTER,
        "guided, all whole": GUIDED | MOST,
        "guided, thirds": GUIDED | MOST | THIRDS,
        "guided, all a quarter": GUIDED | QUARTER,
    },
}
"""Study -> case -> changes of the quickstart's configuration."""


def run_quickstart(changes: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Run the quickstart app in this process; give its ledger."""
    if str(APP) not in sys.path:
        sys.path.insert(0, str(APP))
    from quickstart import client_app, server_app

    settings = tomllib.loads((APP / "pyproject.toml").read_text())
    config = {**settings["tool"]["flwr"]["app"]["config"], **changes}
    config["ledger-dir"] = str(folder)
    grid = InProcessGrid(client_app.app, NODES, config)
    random.seed(config["seed"])
    context = Context(1, 1, {}, RecordDict(), config)
    server_app.app(grid, context)
    return read_ledger(folder / "ledger.jsonl")


def main() -> None:
    """Run every case of a study on every seed; print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel("ERROR")
    found: dict[str, dict[str, list[float]]] = {}
    for case, changes in STUDIES[options.study].items():
        columns: dict[str, list[float]] = {"top1": [], "macs": [], "bytes": []}
        for seed in range(options.seeds):
            folder = options.out / options.study / f"{case.replace(', ', '-')}-{seed}"
            run = {**changes, "seed": seed, "num-server-rounds": options.rounds}
            rows = run_quickstart(run, folder)
            columns["top1"].append(curve(rows).mean_until(options.rounds))
            columns["macs"].append(total(rows, "macs"))
            moved = total(rows, "bytes_down") + total(rows, "bytes_up")
            columns["bytes"].append(moved)
        found[case] = columns
        first = next(iter(found.values()))
        macs, moved = (
            statistics.mean(columns[key]) / statistics.mean(first[key])
            for key in ("macs", "bytes")
        )
        top1 = " ".join(f"{value:.3f}" for value in columns["top1"])
        print(f"{case:<24} top-1 {top1}  MACs {macs:.2f}  bytes {moved:.2f}")
    path = options.out / f"{options.study}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
