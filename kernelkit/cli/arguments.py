"""Names that several commands take, and what they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kernelkit.cli.console import fail

if TYPE_CHECKING:
    from kernelkit.hardware import Hardware
    from kernelkit.registry import KernelRegistry
    from kernelkit.spec import Op

HardwareName = Annotated[
    str | None,
    typer.Option("--hardware", metavar="NAME", help="A machine that is not this one: h100, a100, mi300x, npu, cpu ..."),
]


def hardware_of(name: str | None, device: str | None = None) -> Hardware:
    """The named machine, else the one behind ``device``, else this one."""
    from kernelkit.hardware import Hardware

    try:
        return Hardware.named(name) if name is not None else Hardware.detect(device)
    except (ValueError, RuntimeError) as error:
        fail(str(error).partition("\n")[0])


def op_of(registry: KernelRegistry, name: str) -> Op:
    """The op of that name."""
    from kernelkit.errors import UnknownNameError

    try:
        return registry.op(name)
    except UnknownNameError as error:
        fail(str(error))
