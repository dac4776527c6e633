"""``kernelkit validate``: whether a config is right, for a machine and for a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kernelkit.cli.arguments import HardwareName, hardware_of
from kernelkit.cli.console import fail, print_table

if TYPE_CHECKING:
    from kernelkit.cli.checking import Verdict

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="YAML files of op names and implementations.")]
Device = Annotated[str | None, typer.Option(metavar="DEVICE", help="A torch device of this machine: cpu, cuda:1.")]
Model = Annotated[str | None, typer.Option(metavar="PATH", help="Folder or hub name of a model; its config is read.")]
DType = Annotated[str | None, typer.Option(metavar="NAME", help="The model's dtype: bfloat16.")]
Training = Annotated[bool, typer.Option("--training/--inference", help="Whether gradients will be asked for.")]
Compiled = Annotated[bool, typer.Option("--compiled", help="The model will be traced by torch.compile.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def validate(
    files: Files,
    hardware: HardwareName = None,
    device: Device = None,
    model: Model = None,
    dtype: DType = None,
    training: Training = True,
    compiled: Compiled = False,
    as_json: Json = False,
) -> None:
    """Check configs for this machine or another, and for a model; say what each op resolves to, and why.

    Exits with 0 if every file is valid, with 1 if one is not.
    """
    from kernelkit.cli.checking import Circumstances, check

    if hardware is not None and device is not None:
        fail("--hardware names another machine and --device a device of this one; give one of them")
    given = Circumstances(
        hardware=hardware_of(hardware, device),
        elsewhere=hardware is not None,
        training=training,
        compiled=compiled,
        dtype=None if dtype is None else _floating(dtype),
        model=None if model is None else _needs_of(model),
        skeleton=None if model is None else partial(_skeleton_of, model),
    )
    verdicts = [check(file, given) for file in files]
    if as_json:
        typer.echo(json.dumps([{"valid": not verdict.errors, **asdict(verdict)} for verdict in verdicts], indent=2))
    else:
        circumstances = f"on {given.hardware}" + (f" for {given.model[0]}" if given.model else "")
        for verdict in verdicts:
            _print(verdict, circumstances)
    if any(verdict.errors for verdict in verdicts):
        raise typer.Exit(1)


def _print(verdict: Verdict, circumstances: str) -> None:
    from kernelkit.cli.checking import folded

    for warning in verdict.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for error in verdict.errors:
        typer.echo(f"{error['file']}:{error['line']}:{error['column']}: {error['message']}", err=True)
    if verdict.errors:
        return
    typer.echo(f"{verdict.file}: valid {circumstances}\n")
    print_table(("op", "variants", "impl", "why"), list(folded(verdict.kernels)))
    if verdict.missing:
        typer.echo("\nA model that needs one of these would be refused:")
        for outcome in verdict.missing:
            typer.echo(f"- {outcome.why}")
    typer.echo()


def _needs_of(model: str) -> Any:
    from kernelkit.models.auto import kernel_needs

    try:
        return kernel_needs(model)
    except (OSError, ValueError) as error:
        fail(f"--model {model}: {str(error).strip().partition(chr(10))[0]}")


def _skeleton_of(model: str) -> Any:
    from kernelkit.models.auto import build_skeleton

    return build_skeleton(model)


def _floating(name: str) -> str:
    import torch

    from kernelkit.errors import unknown

    dtypes = {key for key, value in vars(torch).items() if isinstance(value, torch.dtype) and value.is_floating_point}
    if name not in dtypes:
        fail(unknown("dtype", name, sorted(dtypes)))
    return name
