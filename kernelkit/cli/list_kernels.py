"""``kernelkit list``: which kernels there are, and which of them run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from kernelkit.cli.arguments import HardwareName, hardware_of, op_of
from kernelkit.cli.console import print_table

if TYPE_CHECKING:
    from kernelkit.hardware import Hardware
    from kernelkit.registry import KernelRegistry
    from kernelkit.spec import KernelSpec, Op

OpName = Annotated[str | None, typer.Option("--op", metavar="OP", help="This op only.")]


def list_kernels(op: OpName = None, hardware: HardwareName = None) -> None:
    """List the implementations of each op, and whether they run here."""
    from kernelkit.registry import default_registry

    registry, machine = default_registry(), hardware_of(hardware)
    ops = [op_of(registry, op)] if op else list(registry.ops.values())
    typer.echo(f"Kernels on {machine}\n")
    rows = [row for each in ops for row in rows_of(each, registry, machine)]
    print_table(("op", "impl", "variants", "runs", "notes"), rows)
    for plugin, reason in registry.broken_plugins.items():
        typer.echo(f"\nplug-in {plugin} cannot be loaded: {reason}")


def rows_of(op: Op, registry: KernelRegistry, machine: Hardware) -> Iterator[tuple[str, ...]]:
    """A row for each implementation; variants share it where the same is true of them."""
    variants: dict[tuple[str, str, str], list[str]] = {}
    for impl in registry.impls(op.name):
        for spec in registry.list(op.name, name=impl):
            # Asked without training and compiling: what a kernel cannot do there is a note, no reason to be missing.
            reason = spec.problem(machine, training=False)
            notes = "; ".join([*([reason] if reason else []), *marks(spec)])
            variants.setdefault((impl, "no" if reason else "yes", notes), []).append(spec.variant)
    for (impl, runs, notes), names in variants.items():
        yield op.name, impl, ", ".join(names), runs, notes


def marks(spec: KernelSpec) -> list[str]:
    """What one should know of a kernel before choosing it."""
    said = {
        "not run on its hardware yet": not spec.tested,
        "inference only": spec.inference_only,
        "not traceable by torch.compile": not spec.traceable,
        "not deterministic": not spec.deterministic,
    }
    return [mark for mark, holds in said.items() if holds]
