"""Variants of the quickstart, in-process: one table of accuracies and costs."""

import argparse
import json
import logging
import random
import statistics
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from examples.inprocess import InProcessGrid
from flwr_autoflip.ledger.ledger import read_ledger, total
from flwr_autoflip.ledger.page.curves import curve

APP = Path(__file__).parents[1] / "quickstart"
NODES = 20
Rows = list[dict[str, Any]]
Cases = Mapping[str, dict[str, Any]]


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


def compare(cases: Cases, name: str, description: str | None) -> None:
    """Run every case on every seed, as the command line says; print and write.

    Parameters
    ----------
    cases : mapping of str to dict
        Changes of the quickstart's configuration.
    name : str
        Of the folder of runs and of the file of figures.
    description : str, optional
        For ``--help``.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--cases", nargs="+", default=list(cases), choices=cases)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks") / name)
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel("ERROR")
    found: dict[str, dict[str, list[float]]] = {}
    for case in options.cases:
        columns: dict[str, list[float]] = {"top1": [], "macs": [], "bytes": []}
        for seed in range(options.seeds):
            changes = {"seed": seed, "num-server-rounds": options.rounds}
            folder = options.out / f"{case.replace(', ', '-').replace(' ', '-')}-{seed}"
            rows = run_quickstart({**cases[case], **changes}, folder)
            columns["top1"].append(curve(rows).mean_until(options.rounds))
            columns["macs"].append(total(rows, "macs"))
            moved = total(rows, "bytes_down") + total(rows, "bytes_up")
            columns["bytes"].append(moved)
        found[case] = columns
        top1 = " ".join(f"{value:.3f}" for value in columns["top1"])
        macs, moved = (statistics.mean(columns[key]) for key in ("macs", "bytes"))
        print(f"{case:<24} top-1 {top1}  MACs {macs:.3g}  bytes {moved:.3g}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
