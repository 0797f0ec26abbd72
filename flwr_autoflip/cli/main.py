"""Commands of ``flwr-autoflip``; each imports what it needs when it runs."""

from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated

import typer

from .output import clear_errors

app = typer.Typer(
    name="flwr-autoflip",
    help="Look at AutoFLIP runs and pruned models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Write JSON for a program.")]
RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="A ledger, or the folder it lies in.")
]
ModelFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="What save_pruned() wrote.")
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(installed("flwr-autoflip"))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Look at AutoFLIP runs and pruned models."""


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Ledgers, their folders, or a folder of those."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    png: Annotated[
        bool, typer.Option("--png", help="Charts as PNGs beside it, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make one HTML page of one or more runs, side by side."""
    from .report import make_report

    with clear_errors():
        make_report(runs, out, png, as_json)


@app.command()
def inspect(file: ModelFile, as_json: Json = False) -> None:
    """Show a pruned model: its layers before and after, what it costs."""
    from .inspect import show_model

    with clear_errors():
        show_model(file, as_json)


@app.command()
def export(
    file: ModelFile,
    onnx: Annotated[Path, typer.Option("--onnx", help="The ONNX file to write.")],
    model: Annotated[
        str,
        typer.Option(
            metavar="MODULE:NAME",
            help="What gives the dense model, such as quickstart.task:Net.",
        ),
    ],
    example: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="SHAPE",
            help="Of an example input, such as 1,3,32,32; integers: 1,80:int64.",
        ),
    ],
) -> None:
    """Export a pruned model to ONNX and check it in onnxruntime."""
    from .export import export_model

    with clear_errors():
        export_model(file, onnx, model, example)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine for Flower's traps, and say the way out of each."""
    from .doctor import show_findings

    if not show_findings(as_json):
        raise typer.Exit(1)


@app.command()
def tensorboard(
    run: RunPath,
    logdir: Annotated[Path, typer.Argument(metavar="LOGDIR", help="For its events.")],
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on while the run goes on.")
    ] = False,
) -> None:
    """Write a run's scalars for TensorBoard."""
    from .tensorboard import write_scalars

    with clear_errors():
        write_scalars(run, logdir, follow)
