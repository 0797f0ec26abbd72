"""How commands speak: tables for people, JSON for programs, one line for errors."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import AutoFlipError, visible

LONGEST_LINE = 4000
"""Characters of an error or a path."""


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn what went wrong into one line on stderr and exit status 1."""
    try:
        yield
    except (AutoFlipError, OSError) as error:
        say(f"Error: {error}", err=True)
        raise typer.Exit(1) from None


def say(text: str, err: bool = False) -> None:
    """Print a line in which names of files and others' words may stand."""
    typer.echo(visible(text, LONGEST_LINE), err=err)


def print_json(value: Any) -> None:
    """Write a value for a program to read."""
    typer.echo(json.dumps(value, indent=1))


def console() -> Console:
    """Give a console as wide as the terminal; 80 columns where there is none."""
    width = None if os.isatty(1) or "COLUMNS" in os.environ else 80
    return Console(width=width, highlight=False)


def print_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)
) -> None:
    """Print a table that folds long words; columns of words are left-aligned."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for number, head in enumerate(heads):
        left = number in words
        justify: Any = "left" if left else "right"
        table.add_column(head, justify=justify, overflow="fold", no_wrap=not left)
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))  # no markup
    console().print(table)
