"""Run targets under atheris: ``python -m fuzz``, all of them or some.

Every target runs in a process of its own, so that one finding does not end the others,
and what libFuzzer measures (executions, peak memory) is that target's alone. Corpora
grow in ``--out``; what made a finding stays there as ``crash-*``, ``timeout-*`` or
``oom-*``.
"""

import argparse
import json
import logging
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import atheris
import torch

with atheris.instrument_imports(include=["flwr_autoflip"]):
    from .targets import TARGETS

RSS_LIMIT_MB = 2048
TIMEOUT = 5
"""Seconds of one execution."""


def write_seeds(home: Path, name: str) -> list[Path]:
    """Write a target's seeds, made from real messages and files; give the corpora."""
    corpora = [home / "corpus", home / "seeds"]
    for folder in corpora:
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (home / "seeds" / f"{number:03}").write_bytes(seed)
    return corpora


def fuzz(home: Path, name: str, runs: int, seconds: int) -> dict[str, Any]:
    """Fuzz one target in a process of its own; say how it went.

    Parameters
    ----------
    home : Path
        Folder of this target's corpora, log and findings.
    name : str
    runs, seconds : int
        Whichever comes first ends it; 0 means no bound.

    Returns
    -------
    dict
        Executions, peak resident memory in MB, seconds, and what was found.
    """
    options = {
        "runs": runs or -1,
        "max_total_time": seconds,
        "max_len": TARGETS[name].longest,
        "timeout": TIMEOUT,
        "rss_limit_mb": RSS_LIMIT_MB,
        "print_final_stats": 1,
        "artifact_prefix": f"{home}/",
    }
    flags = [f"-{key}={value}" for key, value in options.items()]
    corpora = [str(folder) for folder in write_seeds(home, name)]
    start = time.monotonic()
    child = os.fork()
    if not child:
        _run(name, [*flags, *corpora], home / "log.txt")
    _, status = os.waitpid(child, 0)
    log = (home / "log.txt").read_text(errors="replace")
    stats = dict(re.findall(r"stat::(\w+): +(\d+)", log))
    kinds = re.compile("(crash|timeout|oom|slow-unit)-")
    return {
        "target": name,
        "executions": int(stats.get("number_of_executed_units", 0)),
        "peak_rss_mb": int(stats.get("peak_rss_mb", 0)),
        "seconds": round(time.monotonic() - start),
        "exit": os.waitstatus_to_exitcode(status),
        "findings": sorted(p.name for p in home.iterdir() if kinds.match(p.name)),
    }


def _run(name: str, arguments: list[str], log: Path) -> None:
    """Become the fuzzer of one target; does not come back."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)

    def run(data: bytes) -> None:
        TARGETS[name].run(data)

    atheris.Setup([sys.argv[0], *arguments], run)
    atheris.Fuzz()


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="of all together")
    parser.add_argument("--runs", type=int, default=0, help="of each target")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    names = options.targets or list(TARGETS)
    seconds = 0 if options.runs else max(1, options.seconds // len(names))
    rows = []
    for name in names:
        home = options.out.resolve() / name
        rows.append(fuzz(home, name, options.runs, seconds))
        print(json.dumps(rows[-1]), flush=True)
    count = sum(row["executions"] for row in rows)
    found = [f"{row['target']}/{name}" for row in rows for name in row["findings"]]
    # A seed that raises ends its target without a file of its own.
    found += [f"{row['target']}/log.txt" for row in rows if row["exit"]]
    print(f"{count} executions, {len(found)} findings {' '.join(found)}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
