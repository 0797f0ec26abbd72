"""What weak nodes cost in accuracy: the quickstart with thirds of strength, in-process.

A third of the nodes carries a quarter of the dense model's MACs, a third half, a third
all of it. Beside it the same run with nodes that carry the whole plan, and one in which
everybody trains the quarter, chosen by the same scores.
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

from flwr_autoflip.inprocess import InProcessGrid
from flwr_autoflip.ledger import read_ledger, total
from flwr_autoflip.report import curve

APP = Path(__file__).parents[1] / "quickstart"
NODES = 20
Rows = list[dict[str, Any]]

CASES: dict[str, dict[str, Any]] = {
    "dense, all whole": {"policy": "dense"},
    "dense, thirds": {"policy": "dense", "budgets": "thirds"},
    "l1, all a quarter": {"policy": "l1", "threshold": "macs:0.25"},
    "autoflip, all whole": {"threshold": "macs:0.75"},
    "autoflip, thirds": {"threshold": "macs:0.75", "budgets": "thirds"},
    "autoflip, all a quarter": {"threshold": "macs:0.25"},
}


def run_quickstart(changes: dict[str, Any], folder: Path) -> Rows:
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
    """Run every case on every seed; print accuracies and costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/budgets"))
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel("ERROR")
    found: dict[str, dict[str, list[float]]] = {}
    for case in options.cases:
        columns: dict[str, list[float]] = {"top1": [], "macs": [], "bytes": []}
        for seed in range(options.seeds):
            changes = {"seed": seed, "num-server-rounds": options.rounds}
            folder = options.out / f"{case.replace(', ', '-').replace(' ', '-')}-{seed}"
            rows = run_quickstart({**CASES[case], **changes}, folder)
            columns["top1"].append(curve(rows).mean_until(options.rounds))
            columns["macs"].append(total(rows, "macs"))
            moved = total(rows, "bytes_down") + total(rows, "bytes_up")
            columns["bytes"].append(moved)
        found[case] = columns
        top1 = " ".join(f"{value:.3f}" for value in columns["top1"])
        macs, moved = (statistics.mean(columns[key]) for key in ("macs", "bytes"))
        print(f"{case:<24} top-1 {top1}  MACs {macs:.3g}  bytes {moved:.3g}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "budgets.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
