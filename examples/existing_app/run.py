"""Run an app that exists, as it is and with autoflip_mod: both kinds, ``flwr run``.

``python -m examples.existing_app.run`` puts each app together, applies the diff beside
this file to a copy, runs both on virtual nodes and shows accuracy and bytes.
"""

import argparse
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from ..simulation import flwr_run, superlink

HERE = Path(__file__).parent
KINDS = ("message", "numpy")
# A message strategy's dict of a round; a line of the legacy server's history.
ACCURACY = re.compile(r"(?:'accuracy': '?|\(\d+, )([\d.]+(?:e-\d+)?)")


def assemble(kind: str, folder: Path, *, pruned: bool) -> Path:
    """Put an app together.

    Parameters
    ----------
    kind : {"message", "numpy"}
    folder : Path
        Made anew.
    pruned : bool
        Whether the kind's diff is applied.

    Returns
    -------
    Path
        The folder.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(HERE / "app", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("client_app.py", "server_app.py"):
        shutil.copy(HERE / kind / name, folder / "digits" / name)
    if pruned:
        command = ["git", "apply", str(HERE / f"{kind}.diff")]
        # The folder may lie in a repository, which is none of git's business here.
        outside = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
        subprocess.run(command, cwd=folder, env=outside, check=True)
    return folder


def last_numbers(lines: Iterable[str]) -> tuple[float, float]:
    """Read the last evaluation's accuracy and the megabytes so far from a run's log.

    Returns
    -------
    accuracy : float
        NaN if the run never got there.
    megabytes : float
        As AutoFlip counts them; NaN without it.
    """
    accuracy = megabytes = float("nan")
    for line in lines:
        if found := ACCURACY.findall(line):
            accuracy = float(found[-1])
        if found := re.findall(r"([\d.]+) MB so far", line):
            megabytes = float(found[-1])
    return accuracy, megabytes


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/existing_app"))
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    config = {"num-server-rounds": options.rounds}
    with superlink(out) as environment:
        for kind in options.kinds:
            for pruned in (False, True):
                name = f"{kind}-{'after' if pruned else 'before'}"
                app = assemble(kind, out / name, pruned=pruned)
                log = out / f"{name}.log"
                lines = flwr_run(app, config, options.nodes, environment, log)
                accuracy, megabytes = last_numbers(lines)
                if accuracy != accuracy:
                    raise SystemExit(f"{name} did not finish; see {log}")
                print(f"{name:<15} accuracy {accuracy:.4f}  MB {megabytes:.2f}")


if __name__ == "__main__":
    main()
