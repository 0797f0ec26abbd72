"""``doctor``: what the checks found, and the way out."""

from dataclasses import asdict

import typer
from rich.markup import escape

from ..errors import visible
from .checks import Finding, examine
from .output import console, print_json

SIGNS = {
    "ok": "[green]ok[/]",
    "warning": "[yellow]warning[/]",
    "problem": "[red]problem[/]",
}


def show_findings(as_json: bool) -> bool:
    """Print every check's finding.

    Parameters
    ----------
    as_json : bool

    Returns
    -------
    bool
        Whether nothing is a problem; warnings are none.
    """
    findings = examine()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            _show(finding)
        bad = sum(finding.status == "problem" for finding in findings)
        unsure = sum(finding.status == "warning" for finding in findings)
        typer.echo(f"\n{bad} problems, {unsure} warnings.")
    return all(finding.status != "problem" for finding in findings)


def _show(finding: Finding) -> None:
    out = console()
    sign = SIGNS[finding.status]
    found = escape(visible(finding.found))
    out.print(f"{sign} [bold]{escape(finding.check)}[/]: {found}")
    if finding.way_out:
        out.print(f"   {escape(visible(finding.way_out))}", soft_wrap=True)
