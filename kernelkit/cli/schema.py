"""``kernelkit schema``: what an editor completes op and implementation names from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kernelkit.cli.console import fail

OutputFile = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to FILE.")]


def schema(output: OutputFile = None) -> None:
    """Write the JSON schema of an ops config, with the ops of this machine's plug-ins."""
    from kernelkit.containers import OpsConfig

    text = json.dumps(OpsConfig.model_json_schema(), indent=2)
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        fail(f"{output} cannot be written: {error.strerror}")
