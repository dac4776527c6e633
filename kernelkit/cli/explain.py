"""``kernelkit explain``: what an op promises, and what one of its implementations is."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kernelkit.cli.arguments import HardwareName, hardware_of, op_of
from kernelkit.cli.console import fail, print_table

if TYPE_CHECKING:
    from pydantic import BaseModel

    from kernelkit.hardware import Hardware
    from kernelkit.registry import KernelRegistry
    from kernelkit.spec import KernelSpec, Op

OpName = Annotated[str, typer.Argument(metavar="OP", help="Name of an op: rms_norm.")]
ImplName = Annotated[str | None, typer.Argument(metavar="[IMPL]", help="Name of one of its implementations: liger.")]


def explain(op: OpName, impl: ImplName = None, hardware: HardwareName = None) -> None:
    """Print the contract of an op, or all about one implementation of it."""
    from kernelkit.errors import unknown
    from kernelkit.registry import default_registry

    registry, machine = default_registry(), hardware_of(hardware)
    found = op_of(registry, op)
    if impl is None:
        explain_op(found, registry)
        return
    specs = registry.list(op, name=impl)
    if not specs:
        fail(unknown("implementation", impl, registry.impls(op), of=op))
    explain_impl(specs, machine)


def explain_op(op: Op, registry: KernelRegistry) -> None:
    """The contract, the variants with their references, the implementations, and which were measured to be fast."""
    from kernelkit.kernels.measurements import shipped

    typer.echo(f"{op.name}\n\n{inspect.cleandoc(op.protocol.__doc__ or '')}\n")
    call = op.protocol.__call__
    typer.echo(f"{signature(op.name, call)}\n\n{_indented(inspect.cleandoc(call.__doc__ or ''))}\n")
    rows = [(variant, reference, op.default_for(variant)) for variant, reference in op.variants.items()]
    print_table(("variant", "reference", "default"), rows)
    typer.echo()
    by_name = {impl: registry.list(op.name, name=impl) for impl in registry.impls(op.name)}
    impls = [(impl, ", ".join(spec.variant for spec in specs), specs[0].description) for impl, specs in by_name.items()]
    print_table(("implementation", "variants", "description"), impls)
    orders = [
        (gpu.gpu, each.variant, each.passes, each.date, ", ".join(each.impls))
        for gpu in shipped()
        for each in gpu.rankings
        if each.op == op.name
    ]
    if orders:
        typer.echo()
        print_table(("measured on", "variant", "pass", "date", "the fastest first"), orders)


def explain_impl(specs: list[KernelSpec], machine: Hardware) -> None:
    """What is declared of one implementation, and its options."""
    typer.echo(f"{specs[0].op}: {specs[0].name}")
    variants: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for spec in specs:
        variants.setdefault(tuple(facts(spec, machine)), []).append(spec.variant)
    for rows, names in variants.items():
        typer.echo()
        print_table(("variants" if len(names) > 1 else "variant", ", ".join(names)), rows)
    typer.echo()
    options = specs[0].options
    if options is None:
        typer.echo("It takes no options.")
        return
    print_table(("option", "type", "default"), option_rows(options))
    if options.__doc__:
        typer.echo(f"\n{inspect.cleandoc(options.__doc__)}")


def facts(spec: KernelSpec, machine: Hardware) -> list[tuple[str, str]]:
    """What the spec says, as rows of name and value."""
    reason = spec.problem(machine, training=False)
    needs = [", ".join(spec.hardware.device_types) or "any device"]
    for bound, capability in (("at least", spec.hardware.min_capability), ("at most", spec.hardware.max_capability)):
        if capability:
            needs.append(f"compute capability {bound} {capability[0]}.{capability[1]}")
    known = {
        "description": spec.description,
        f"on {machine.name}": reason or "runs",
        "needs": ", ".join([*needs, *spec.packages]),
        "dtypes": ", ".join(spec.dtypes or ()) or "any floating dtype",
        "limits": ", ".join(f"{name} up to {most}" for name, most in spec.limits.items()),
        "refuses, when called": spec.refuses,
        "training": "no backward: for inference only" if spec.inference_only else "yes",
        "torch.compile": "traceable" if spec.traceable else "not traceable",
        "deterministic": "yes" if spec.deterministic else "no",
        "run on its hardware": "yes" if spec.tested else "not yet",
        "traits": ", ".join(f"{name}={value}" for name, value in spec.traits.items()),
        "declared at": spec.location,
    }
    return [(name, value) for name, value in known.items() if value]


def option_rows(options: type[BaseModel]) -> list[tuple[str, str, str]]:
    """Name, type and default of each option."""
    rows = []
    for name, field in options.model_fields.items():
        kind = field.annotation.__name__ if isinstance(field.annotation, type) else str(field.annotation)
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        rows.append((name, kind.replace("typing.", ""), default))
    return rows


def signature(name: str, call: Any) -> str:
    """A signature with a parameter to the line, the annotations as they are written."""
    found = inspect.signature(call)
    lines = []
    for parameter in list(found.parameters.values())[1:]:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "    *," not in lines:
            lines.append("    *,")
        default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
        lines.append(f"    {parameter.name}: {parameter.annotation}{default},")
    return "\n".join([f"{name}(", *lines, f") -> {found.return_annotation}"])


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())
