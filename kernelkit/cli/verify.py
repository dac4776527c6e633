"""``kernelkit verify``: whether kernels keep the contracts of their ops."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kernelkit.cli.arguments import hardware_of, known_impls, op_of
from kernelkit.cli.console import fail, print_table

if TYPE_CHECKING:
    from kernelkit.containers import KernelContainer
    from kernelkit.spec import KernelSpec
    from kernelkit.testing import KernelVerdict

Config = Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="Judge the kernels that this config names.")]
OpName = Annotated[str | None, typer.Option("--op", metavar="OP", help="This op only.")]
ImplName = Annotated[str | None, typer.Option("--impl", metavar="IMPL", help="This implementation only.")]
Device = Annotated[str | None, typer.Option(metavar="DEVICE", help="A torch device: cpu, cuda:1.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def verify(
    config: Config = None, op: OpName = None, impl: ImplName = None, device: Device = None, as_json: Json = False
) -> None:
    """Judge kernels against eager in float64: values, gradients, purity, determinism, tracing.

    The second table names the checks that were not made, and why. Exits with 0 if all that can run here pass, with 1 if
    one fails or none can run. With TRITON_INTERPRET=1 in the environment, Triton's kernels are judged on a CPU, in its
    interpreter.
    """
    from pydantic import ValidationError

    from kernelkit.registry import default_registry
    from kernelkit.testing import check_kernel

    registry = default_registry()
    if op is not None:
        op_of(registry, op)
    if impl is not None:
        known_impls(registry, [impl], [op] if op else None)
    hardware_of(None, device)
    try:
        specs = list(_specs(config, op, impl, device))
    except ValidationError as error:
        for line in error.errors(include_url=False):
            typer.echo(line["msg"], err=True)
        raise typer.Exit(1) from None
    if not specs:
        fail(f"{config} names no such kernel" if config is not None else "there is no such kernel")
    verdicts = [check_kernel(spec, device=device) for spec in specs]
    if as_json:
        typer.echo(json.dumps([verdict.to_dict() for verdict in verdicts], indent=2))
    else:
        print_table(("op", "variant", "impl", "verdict", "why"), list(map(_row, verdicts)))
        if left_out := _left_out(verdicts):
            typer.echo()
            print_table(("not judged", "why", "of"), left_out)
        for verdict in verdicts:
            if verdict.failures:
                typer.echo(f"\n{verdict}")
    if any(verdict.failures for verdict in verdicts) or all(verdict.skipped for verdict in verdicts):
        raise typer.Exit(1)


def _specs(config: Path | None, op: str | None, impl: str | None, device: str | None) -> Iterator[KernelSpec]:
    """Those that a config names, else all; of them those that are asked for."""
    from kernelkit.containers import KernelContainer, OpsConfig
    from kernelkit.containers.presets import MEASURED_PRESETS, preset_member
    from kernelkit.registry import default_registry

    ops = OpsConfig.from_yaml(config) if config is not None else None
    measured = ops is not None and ops.preset in MEASURED_PRESETS
    container = KernelContainer.from_config(ops, device=device) if measured else None
    for spec in default_registry().list(op, name=impl):
        if ops is not None:
            choice = ops.choices.get(spec.op)
            wanted = choice.impl if choice is not None else preset_member(ops.preset, spec.op)
            if choice is None and container is not None:
                wanted = _fastest(container, spec)
            if wanted != spec.name:
                continue
        yield spec


def _fastest(container: KernelContainer, spec: KernelSpec) -> str | None:
    """What a preset that goes by measurements takes for the variant of ``spec``."""
    from kernelkit.containers import Need
    from kernelkit.containers.resolution import Refusal, resolve

    try:
        need = Need(spec.op, spec.variant)
        binding = resolve(need, container.conditions(), container.config(), container.registry())
    except Refusal:
        return None
    return None if binding.why == "default" else binding.impl


def _row(verdict: KernelVerdict) -> tuple[str, ...]:
    said = "not judged" if verdict.skipped else "passes" if verdict.passed else "fails"
    left = f", {len(verdict.not_checked)} not made" if verdict.not_checked else ""
    why = verdict.skipped or ", ".join(verdict.failures) or f"{len(verdict.checked)} checks{left}"
    return verdict.op, verdict.variant, verdict.impl, said, why


def _left_out(verdicts: list[KernelVerdict]) -> list[tuple[str, ...]]:
    """Each check that was not made, or not of every call, with the reason and the kernels that it is the reason of."""
    found: dict[tuple[str, str], list[str]] = {}
    for verdict in verdicts:
        kernel = f"{verdict.op}.{verdict.variant}.{verdict.impl}"
        reasons = [*verdict.not_checked.items()]
        reasons += [(check, sentence) for check, sentences in verdict.left_out.items() for sentence in sentences]
        for reason in reasons:
            found.setdefault(reason, []).append(kernel)
    # Where a reason holds for all, their names say nothing.
    judged = [verdict for verdict in verdicts if not verdict.skipped]
    return [(*key, "all" if len(of) == len(judged) else ", ".join(of)) for key, of in sorted(found.items())]
