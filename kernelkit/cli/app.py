"""The command line: its subcommands and what they share."""

from __future__ import annotations

from typing import Annotated

import typer

import kernelkit
from kernelkit.cli.bench import bench
from kernelkit.cli.distill import distill
from kernelkit.cli.env import env
from kernelkit.cli.explain import explain
from kernelkit.cli.list_kernels import list_kernels
from kernelkit.cli.schema import schema
from kernelkit.cli.validate import validate
from kernelkit.cli.verify import verify

# The subcommands import torch when they run, so that --help and a mistyped option answer at once.
app = typer.Typer(
    name="kernelkit",
    help="Fused training kernels, chosen per model instance.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("list")(list_kernels)
app.command("explain")(explain)
app.command("validate")(validate)
app.command("verify")(verify)
app.command("distill")(distill)
app.command("bench")(bench)
app.command("schema")(schema)
app.command("env")(env)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(kernelkit.__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Fused training kernels, chosen per model instance."""


def main() -> None:
    """Entry point of the console script."""
    app()
