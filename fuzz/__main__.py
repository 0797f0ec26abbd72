"""Run targets under atheris: ``python -m fuzz``, or one of them for itself.

Every target runs in a process of its own, so that one finding does not end the others,
and what libFuzzer measures (executions, peak memory) is that target's alone. Corpora
grow in ``--out``; what made a finding stays there as ``crash-*``.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RSS_LIMIT_MB = 2048
TIMEOUT = 5


def run_here(name: str, arguments: list[str]) -> None:
    """Fuzz one target in this process, instrumented; does not come back."""
    import warnings

    import atheris
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with atheris.instrument_imports(include=["flwr_autoflip"]):
        from .targets import TARGETS
    import logging

    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    target = TARGETS[name]
    atheris.Setup([sys.argv[0], *arguments], lambda data: int(target.run(data)) * 0)
    atheris.Fuzz()


def write_seeds(out: Path, name: str) -> None:
    """Write a target's seed corpus, made from real messages and files."""
    from .targets import TARGETS

    folder = out / name / "seeds"
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (folder / f"{number:03}").write_bytes(seed)


def fuzz(out: Path, name: str, runs: int, seconds: int) -> dict[str, Any]:
    """Fuzz one target in a process of its own; say how it went.

    Parameters
    ----------
    out : Path
    name : str
    runs, seconds : int
        Whichever comes first ends it; 0 means no bound.

    Returns
    -------
    dict
        Executions, peak resident memory in MB, seconds, and what was found.
    """
    from .targets import TARGETS

    home = out / name
    corpus = home / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
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
    command = [sys.executable, "-m", "fuzz", "--in-process", name, *flags]
    start = time.monotonic()
    done = subprocess.run(
        [*command, str(corpus), str(home / "seeds")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        errors="replace",
    )
    (home / "log.txt").write_text(done.stdout + done.stderr)
    stats = dict(re.findall(r"stat::(\w+): +(\d+)", done.stderr))
    artifacts = [
        p.name for p in home.iterdir() if re.match(r"(crash|oom|time)", p.name)
    ]
    return {
        "target": name,
        "executions": int(stats.get("number_of_executed_units", 0)),
        "peak_rss_mb": int(stats.get("peak_rss_mb", 0)),
        "seconds": round(time.monotonic() - start),
        "exit": done.returncode,
        "findings": artifacts,
    }


def main() -> int:
    """Run what the command line asks for."""
    if sys.argv[1:2] == ["--in-process"]:
        run_here(sys.argv[2], sys.argv[3:])
    from .targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], default=[])
    parser.add_argument("--seconds", type=int, default=60, help="of all together")
    parser.add_argument("--runs", type=int, default=0, help="of each target")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    options = parser.parse_args()
    names, out = options.targets or list(TARGETS), options.out.resolve()
    seconds = 0 if options.runs else max(1, options.seconds // len(names))
    rows = []
    for name in names:
        write_seeds(out, name)
        rows.append(fuzz(out, name, options.runs, seconds))
        print(json.dumps(rows[-1]), flush=True)
    count, found = (sum(row["executions"] for row in rows), [])
    found = [f"{row['target']}/{name}" for row in rows for name in row["findings"]]
    print(f"{count} executions, {len(found)} findings: {found}")
    return int(bool(found) or any(row["exit"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
