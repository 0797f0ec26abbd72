"""One page for one or more runs: HTML that needs nothing but itself; and PNGs."""

from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from ..provenance import describe
from .charts import CSS, plotting, write_png
from .html import escape
from .nodes import failure_table, node_charts, nodes
from .overview import lead, overview
from .progress import accuracy, accuracy_charts, against_dense
from .runs import Run
from .structure import heat_charts, importance, importance_heat, units, units_heat


def render_page(runs: Sequence[Run]) -> str:
    """Write the page.

    Parameters
    ----------
    runs : sequence of Run
        At least one.

    Returns
    -------
    str
        HTML without any address to fetch from.

    Raises
    ------
    AutoFlipError
        Without matplotlib, which comes with ``flwr-autoflip[plots]``.
    """
    title = escape(runs[0].name if len(runs) == 1 else f"{len(runs)} runs")
    parts = (
        *(overview, accuracy, against_dense, units, importance, nodes),
        *(failure_table, _footer),
    )
    with plotting():
        body = "".join(part(runs) for part in parts)
    script = files(__package__).joinpath("page.js").read_text("utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>AutoFLIP: {title}</title><link rel="icon" href="data:,">'
        f"<style>{CSS}</style></head><body><main><h1>AutoFLIP: {title}</h1>"
        f'<p class="lead">{escape(lead(runs))}</p>{body}</main>'
        f"<script>{script}</script></body></html>\n"
    )


def _footer(runs: Sequence[Run]) -> str:
    made = ""
    for run in runs:
        starts = "; went on with ".join(map(describe, run.of_phase("run")))
        made += f"<br>{escape(run.name)}: "
        made += escape(starts or "no word of what made it") + "."
    return (
        "<footer>Bytes are serialised messages, both ways. MACs are those of the "
        "models that nodes really built, counted there, a training step taken as "
        "three forward passes. Exploring is in every total. “Dense” bytes are those of "
        "the dense model's own messages, sent and answered as often. "
        f"Page by flwr-autoflip {version('flwr-autoflip')}.{made}</footer>"
    )


def write_pngs(runs: Sequence[Run], stem: Path) -> list[Path]:
    """Draw what the runs have data for as PNGs; give their paths.

    These begin with ``stem``: ``report`` makes ``report-curves.png`` and so on. Raises
    what :func:`render_page` does.
    """
    kinds = {
        "curves": accuracy_charts(runs),
        "units": heat_charts(runs, units_heat),
        "importance": heat_charts(runs, importance_heat),
        "nodes": node_charts(runs),
    }
    paths = []
    with plotting():
        for kind, charts in kinds.items():
            if charts:
                paths.append(stem.with_name(f"{stem.name}-{kind}.png"))
                write_png(charts, paths[-1])
    return paths
