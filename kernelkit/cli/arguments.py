"""Names that several commands take, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterable
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


def known_impls(registry: KernelRegistry, names: Iterable[str], ops: Iterable[str] | None) -> None:
    """Refuse a name that no implementation has, of these ops or of any."""
    from kernelkit.errors import unknown

    valid = sorted({impl for op in ops or registry.ops for impl in registry.impls(op)})
    for name in names:
        if name not in valid:
            fail(unknown("implementation", name, valid, of=", ".join(ops or ())))
