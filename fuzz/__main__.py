"""Run targets under atheris: ``python -m fuzz``, all of them or some.

Every target runs in a process of its own, so that one finding does not end the others.
Corpora grow in ``--out``; what made a finding stays there as ``crash-*``, ``timeout-*``
or ``oom-*``.
"""

import argparse
import logging
import os
import re
import sys
import warnings
from pathlib import Path

import atheris
import torch

with atheris.instrument_imports(include=["flwr_autoflip"]):
    from .targets import TARGETS

OPTIONS = {"timeout": 20, "rss_limit_mb": 2048, "print_final_stats": 1}
"""Seconds of one execution, memory of all."""


def fuzz(home: Path, name: str, runs: int, seconds: int) -> str:
    """Fuzz one target in a process of its own; say what was found, "" if nothing.

    Whichever comes first of ``runs`` and ``seconds`` ends it; 0 means no bound.
    """
    corpora = [home / "corpus", home / "seeds"]
    for folder in corpora:
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds):
        (home / "seeds" / f"{number:03}").write_bytes(seed)
    bounds = {"max_len": TARGETS[name].longest, "artifact_prefix": f"{home}/"}
    bounds |= {"runs": runs or -1, "max_total_time": seconds, **OPTIONS}
    flags = [f"-{key}={value}" for key, value in bounds.items()]
    child = os.fork()
    if not child:
        log = os.open(home / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        TARGETS[name].run(TARGETS[name].seeds[0])  # what is made once takes long
        arguments = [sys.argv[0], *flags, *map(str, corpora)]
        atheris.Setup(arguments, lambda data: (TARGETS[name].run(data), None)[1])
        atheris.Fuzz()
    _, status = os.waitpid(child, 0)
    text = (home / "log.txt").read_text(errors="replace")
    print(name, *re.findall(r"stat::(.*)", text), sep="\n  ", flush=True)
    kinds = re.compile("(crash|timeout|oom|slow-unit)-")
    found = [str(path) for path in home.iterdir() if kinds.match(path.name)]
    # A seed that raises ends its target without a file of its own.
    return " ".join(found) or (f"{home}/log.txt" if status else "")


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
    names, out = options.targets or list(TARGETS), options.out.resolve()
    seconds = 0 if options.runs else max(1, options.seconds // len(names))
    found = [fuzz(out / name, name, options.runs, seconds) for name in names]
    print("findings:", *filter(None, found))
    return int(any(found))


if __name__ == "__main__":
    sys.exit(main())
