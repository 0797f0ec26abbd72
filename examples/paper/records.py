"""Where finished runs are: a folder each, and one file for all that are put away.

Below ``<root>/<scale>/`` every run that is made has a folder,
``<task>/<method>/seed<k>/``. :func:`collect` puts the configurations and results of all
into ``<root>/<scale>.jsonl.gz``, one JSON object a line, sorted: the same runs are the
same bytes. A folder comes before its line in the file, so a run that is made again
replaces the old one.
"""

import gzip
import io
import json
import os
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr_autoflip.graph.storage import write_whole

CONFIG, RESULT = "config.json", "run.json"
Record = Mapping[str, Any]
"""A run's ``"config"`` and ``"result"``; see :class:`.results.Outcome`."""


def put_away(folder: Path) -> Mapping[str, Record]:
    """Read the file of a scale.

    Parameters
    ----------
    folder : Path
        ``<root>/<scale>``.

    Returns
    -------
    mapping of str to mapping
        ``"<task>/<method>/seed<k>"`` to its record; empty without a file.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    path = _file_of(folder)
    return _read(path, path.stat().st_mtime_ns) if path.exists() else {}


def finished(folder: Path) -> list[str]:
    """List the names of all runs of a scale that have ended, by task, method, seed."""
    made = {
        path.parent.relative_to(folder).as_posix()
        for path in folder.glob(f"*/*/seed*/{RESULT}")
    }
    return sorted(made | set(put_away(folder)), key=lambda name: name.split("/"))


def read_record(folder: Path, name: str) -> Record:
    """Read one finished run, from its own folder if there is one.

    Parameters
    ----------
    folder : Path
        ``<root>/<scale>``.
    name : str
        One of :func:`finished`.

    Returns
    -------
    mapping
    """
    own = folder / name
    if (own / RESULT).exists():
        return {
            "config": json.loads((own / CONFIG).read_text()),
            "result": json.loads((own / RESULT).read_text()),
        }
    return put_away(folder)[name]


def collect(folder: Path) -> Path:
    """Put all finished runs of a scale into its file; their folders stay.

    Parameters
    ----------
    folder : Path
        ``<root>/<scale>``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If a run cannot be read, or there is none; the old file stays as it is.
    """
    lines = []
    for name in finished(folder):
        try:
            line = {"run": name, **read_record(folder, name)}
        except (ValueError, OSError) as error:
            raise ValueError(f"{folder / name} cannot be read: {error}") from error
        lines.append(json.dumps(line, separators=(",", ":")) + "\n")
    if not lines:
        raise ValueError(f"{folder}: no finished run.")
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, packed, mtime=0) as file:
        file.write("".join(lines).encode())
    path = _file_of(folder)
    write_whole(path, packed.getvalue())
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write a file such that it is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text)
    os.replace(part, path)


def _file_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.jsonl.gz")


@lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> dict[str, Record]:
    """Read a file once for every time at which it was changed."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        return {record.pop("run"): record for record in records}
    except (
        ValueError,
        KeyError,
        AttributeError,
        EOFError,
        OSError,
        zlib.error,
    ) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it.") from error
