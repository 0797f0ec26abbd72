"""``report``: ledgers to a page, pictures, or figures."""

from collections.abc import Sequence
from pathlib import Path

from ..graph.storage import write_whole
from ..ledger.page.overview import figures
from ..ledger.page.page import render_page, write_pngs
from ..ledger.page.runs import read_runs, summarise
from .output import print_json, print_table, say

SHOWN = {
    "rounds": "rounds",
    "accuracy": "accuracy",
    "kept": "parameters kept",
    "moved": "bytes moved",
    "saved": "bytes saved",
    "failures": "failures",
}
"""Heads, short enough for 80 columns, and the page's figures below them."""


def make_report(paths: Sequence[Path], out: Path, png: bool, as_json: bool) -> None:
    """Write the page, and PNGs if asked for; print the main figures, or JSON.

    Raises
    ------
    AutoFlipError
        If a ledger cannot be read, or without matplotlib.
    """
    runs = read_runs(paths)
    page = render_page(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, page.encode(), private=False)
    written = [out, *(write_pngs(runs, out.with_suffix("")) if png else ())]
    if as_json:
        files = [str(path) for path in written]
        print_json({"files": files, "runs": [summarise(run) for run in runs]})
        return
    found = [(run.name, figures(run)) for run in runs]
    rows = [
        [name, *(cells[key].shown for key in SHOWN.values())] for name, cells in found
    ]
    print_table(["run", *SHOWN], rows)
    for run in runs:
        if run.unreadable:
            say(f"{run.name}: {run.unreadable} lines could not be read; left out.")
    for path in written:
        say(f"Written: {path}")
