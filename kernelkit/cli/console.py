"""How the commands speak: tables, and errors of one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import typer
from rich.console import Console
from rich.table import Table

UNBROKEN = 10_000
"""Width for output that nobody sees in a terminal: lines stay whole, for grep and for an issue."""


def print_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table as wide as the terminal, whose cells wrap; piped, every row is one line and nothing is cut."""
    table = Table(*heading, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, emoji=False, width=UNBROKEN)
    with console.capture() as text:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in text.get().splitlines()))


def fail(message: str) -> NoReturn:
    """Leave with status 2 and one line on standard error, as for a mistyped option."""
    typer.echo(f"kernelkit: {message}", err=True)
    raise typer.Exit(2)
