"""One page for one or more runs: HTML that needs nothing but itself."""

from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files

from ..provenance import describe
from .devices import failure_tables, node_section
from .overview import comparison, figures, lead
from .progress import accuracy, against_dense
from .runs import Run
from .structure import guidance, units
from .svg import escape


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
    """
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    overview = figures(runs[0]) if len(runs) == 1 else comparison(runs)
    body = [
        f"<h1>AutoFLIP: {escape(title)}</h1>",
        f'<p class="lead">{escape(lead(runs))}</p>',
        overview,
        accuracy(runs),
        against_dense(runs),
        units(runs),
        guidance(runs),
        node_section(runs),
        failure_tables(runs),
        _footer(runs),
    ]
    style, script = (
        files(__package__).joinpath(name).read_text("utf-8")
        for name in ("page.css", "page.js")
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>AutoFLIP: {escape(title)}</title>"
        '<link rel="icon" href="data:,">'
        f"<style>{style}</style></head><body><main>{''.join(body)}</main>"
        f"<script>{script}</script></body></html>\n"
    )


def _footer(runs: Sequence[Run]) -> str:
    made = "".join(f"<br>{escape(_made_with(run))}" for run in runs)
    return (
        "<footer>Bytes are serialised messages, both ways. MACs are those of the "
        "models that nodes really built, counted there, a training step taken as "
        "three forward passes. Exploring is in every total. “Dense” bytes are those of "
        "the dense model's own messages, sent and answered as often. "
        f"Page by flwr-autoflip {version('flwr-autoflip')}.{made}</footer>"
    )


def _made_with(run: Run) -> str:
    """Say in a line what a run was made with, each time that it was started."""
    starts = [describe(row) for row in run.provenance]
    return f"{run.name}: {'; went on with '.join(starts) or 'no word of what made it'}."
