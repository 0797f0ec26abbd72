"""Seconds a round, FedAvg's and AutoFLIP's: ``python -m examples.deploy.timing``.

One run on SuperNodes of this machine: odd rounds are FedAvg's (the dense model on our
wire), even ones AutoFLIP's, so that load that comes and goes meets both. Wall clock,
from asking the nodes to the new global model; exploring is before.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from flwr_autoflip.ledger.ledger import read_ledger

from .deployment import PARTITIONS, deployment
from .network import round_seconds

APP = Path(__file__).parent / "app"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5, help="SuperNodes, 2 to 20")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind")
    parser.add_argument("--out", type=Path, default=Path("runs/timing"))
    options = parser.parse_args()
    if not 2 <= options.nodes <= PARTITIONS or options.rounds < 1:
        parser.error(f"2 to {PARTITIONS} nodes and at least 1 round are needed.")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    config = {"num-server-rounds": 2 * options.rounds, "ledger-dir": str(out)}
    log = out / "log.txt"
    with deployment(out, options.nodes) as deployed:
        for line in deployed.run(APP, config, log):
            if "[ROUND" in line:
                print(line.partition("[ROUND")[2].strip(" ]\n"), flush=True)
    rows = read_ledger(out / "ledger.jsonl") if (out / "ledger.jsonl").exists() else []
    seconds = round_seconds(rows)
    if len(seconds) < 2 * options.rounds:
        raise SystemExit(f"the run did not finish; see {log}")
    lost = sum(row.get("status", "ok") != "ok" for row in rows)
    (out / "timing.json").write_text(json.dumps(seconds) + "\n")
    print(describe(seconds), f"{lost} replies were lost.", sep="\n")


def describe(seconds: Sequence[float]) -> str:
    """Say what the rounds took, and the ratio of the medians.

    Parameters
    ----------
    seconds : sequence of float
        One a round; odd rounds, the first among them, are FedAvg's.

    Returns
    -------
    str

    Examples
    --------
    >>> print(describe([10.0, 8.0, 11.0, 9.0, 12.0, 9.0]))
    FedAvg's round takes 11.00 s, AutoFLIP's 9.00 s: 0.82 of it (medians of 3)
    """
    fedavg, autoflip = seconds[::2], seconds[1::2]
    medians = statistics.median(fedavg), statistics.median(autoflip)
    return (
        f"FedAvg's round takes {medians[0]:.2f} s, AutoFLIP's {medians[1]:.2f} s: "
        f"{medians[1] / medians[0]:.2f} of it (medians of {len(autoflip)})"
    )


if __name__ == "__main__":
    main()
