"""What a run is made with: commit, versions, the kind of machine, the date.

It says how to make a run again. It holds no name of a host or user, and no path.
"""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = Path(__file__).resolve().parents[1]
CPUINFO = Path("/proc/cpuinfo")
GIT_SECONDS = 10
"""How long git may take to answer."""
LINE = {
    **{"version": "flwr-autoflip {}", "commit": "commit {}", "torch": "torch {}"},
    **{"flwr": "flwr {}", "numpy": "numpy {}", "python": "Python {}"},
    **{"architecture": "{}", "processor": "{}", "cores": "{} cores", "date": "{}"},
}
LONGEST = 80
"""Characters of a value that are shown."""


def provenance(*also: str) -> dict[str, Any]:
    """Say what this process runs, on what, and when.

    Parameters
    ----------
    *also : str
        Folders beside the package, such as ``"examples"``, whose changes count, too.

    Returns
    -------
    dict
        ``commit``: of the checkout that the package is imported from, ``"+changes"``
        behind it if files differ from it; None without a checkout. ``version``,
        ``python``, ``torch``, ``flwr``, ``numpy``: versions. ``architecture``,
        ``processor``: such as ``"x86_64"``, and the model's name or "". ``cores``: of
        the machine. ``date``: UTC, ISO 8601, whole seconds.
    """
    import torch  # takes seconds, and whoever reads ledgers does without

    return {
        "commit": commit_of(PACKAGE.parent, PACKAGE.name, *also),
        "version": version("flwr-autoflip"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "flwr": version("flwr"),
        "numpy": np.__version__,
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit_of(checkout: Path, *folders: str) -> str | None:
    """Name the commit that a checkout is at; None if there is none, or no git.

    ``"+changes"`` stands behind it if files of these folders were changed or are new.
    """
    if not (checkout / ".git").exists():
        return None
    try:
        commit = _git(checkout, "rev-parse", "HEAD")
        changed = _git(checkout, "status", "--porcelain", "--", *folders)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changed else commit


def _git(checkout: Path, *words: str) -> str:
    command = ("git", "-C", str(checkout), *words)
    seconds = GIT_SECONDS
    done = subprocess.run(command, capture_output=True, check=True, timeout=seconds)
    return done.stdout.decode().strip()


def _processor() -> str:
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    return next(names, platform.processor())


def describe(found: Mapping[str, Any]) -> str:
    """Write what :func:`provenance` found in a line, not escaped.

    It may be read from a foreign file: what is missing is left out, what is long cut.

    Examples
    --------
    >>> describe({"version": "0.1.0", "commit": None, "cores": 2, "processor": "M1"})
    'flwr-autoflip 0.1.0, M1, 2 cores'
    """
    return ", ".join(
        text.format(str(found[key])[:LONGEST])
        for key, text in LINE.items()
        if found.get(key) not in (None, "")
    )
