"""``report``: ledgers to a page, pictures, or figures."""

from collections.abc import Sequence
from pathlib import Path

from ..graph.storage import write_whole
from ..ledger.page.page import render_page
from ..ledger.page.runs import Run, read_runs, summarise
from ..ledger.page.svg import amount, percent, share_of
from .output import print_json, print_table, say


def make_report(paths: Sequence[Path], out: Path, png: bool, as_json: bool) -> None:
    """Write the page, and PNGs if asked for; print the main figures.

    Parameters
    ----------
    paths : sequence of Path
    out : Path
        The page.
    png : bool
    as_json : bool
        Figures as JSON.

    Raises
    ------
    AutoFlipError
        If a ledger cannot be read, or PNGs are wanted without matplotlib.
    """
    runs = read_runs(paths)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, render_page(runs).encode(), private=False)
    written = [out]
    if png:
        from ..ledger.page.pictures import draw_all

        written += draw_all(runs, out.with_suffix(""))
    if as_json:
        files = [str(path) for path in written]
        print_json({"files": files, "runs": [summarise(run) for run in runs]})
        return
    _print_figures(runs)
    for run in runs:
        if run.unreadable:
            say(f"{run.name}: {run.unreadable} lines could not be read; left out.")
    for path in written:
        say(f"Written: {path}")


def _print_figures(runs: Sequence[Run]) -> None:
    heads = ("run", "rounds", "accuracy", "kept", "moved", "saved", "failures")
    rows = []
    for found in map(summarise, runs):
        kept, saved = (
            "-" if (share := share_of(found[a], found[b])) is None else percent(share)
            for a, b in (
                ("parameters", "dense_parameters"),
                ("saved_bytes", "dense_bytes"),
            )
        )
        value = "-" if found["value"] is None else f"{found['value']:.3f}"
        moved = amount(found["bytes_down"] + found["bytes_up"], "B")
        rows.append(
            (
                *(found["name"], str(found["rounds"]), value, kept, moved, saved),
                str(found["failures"]),
            )
        )
    print_table(heads, rows)
