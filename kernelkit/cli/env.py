"""``kernelkit env``: what one pastes into an issue."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kernelkit.cli.console import print_table

if TYPE_CHECKING:
    from kernelkit.hardware import Hardware
    from kernelkit.registry import KernelRegistry

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

PACKAGES = ("kernelkit", "torch", "transformers", "triton", "liger-kernel", "dependency-injector", "pydantic")


def env(as_json: Json = False) -> None:
    """Print versions, devices and the kernels that are available here."""
    from kernelkit.hardware import Hardware
    from kernelkit.registry import default_registry

    registry, machine = default_registry(), Hardware.detect()
    facts = machine_facts(machine)
    kernels = {op: working(op, registry, machine) for op in registry.ops}
    if as_json:
        report = {"machine": facts, "kernels": kernels, "broken_plugins": registry.broken_plugins}
        typer.echo(json.dumps(report, indent=2))
        return
    print_table(("", ""), [(name, value or "none") for name, value in facts.items()])
    typer.echo()
    rows = [(op, impl, state) for op, impls in kernels.items() for impl, state in impls.items()]
    print_table(("op", "impl", "here"), rows)
    for plugin, reason in registry.broken_plugins.items():
        typer.echo(f"\nplug-in {plugin} cannot be loaded: {reason}")


def machine_facts(machine: Hardware) -> dict[str, str | None]:
    """Versions of what kernelkit stands on, and the machine below."""
    import platform

    import torch

    import kernelkit
    from kernelkit.packages import installed_packages

    installed = {**installed_packages(), "kernelkit": kernelkit.__version__}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: installed.get(package) for package in PACKAGES},
        "device": str(machine),
        "cuda": torch.version.cuda or (f"ROCm {torch.version.hip}" if torch.version.hip else None),
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "c++ compiler": cxx_compiler(),
    }


def cxx_compiler() -> str | None:
    """The compiler that ``torch.compile`` would use on the CPU, as it names itself."""
    import os

    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((line for name in candidates if (line := _first_line(name, "--version"))), None)


def working(op: str, registry: KernelRegistry, machine: Hardware) -> dict[str, str]:
    """By implementation: ``available`` after it was imported and made, or the reason why not."""
    return {impl: _state(registry.list(op, name=impl), machine) for impl in registry.impls(op)}


def _state(specs: list[Any], machine: Hardware) -> str:
    reasons = {
        spec.variant: reason for spec in specs if (reason := spec.problem(machine, training=False) or _fault(spec))
    }
    if not reasons:
        return "available"
    if len(reasons) == len(specs) and len(set(reasons.values())) == 1:
        return next(iter(reasons.values()))
    return "; ".join(f"{variant}: {reason}" for variant, reason in reasons.items())


def _fault(spec: Any) -> str | None:
    required = (
        [name for name, field in spec.options.model_fields.items() if field.is_required()] if spec.options else []
    )
    if required:
        return f"not tried: it needs options ({', '.join(required)})"
    try:
        spec.build()
    except Exception as error:  # an import may raise anything, and each kernel is reported
        return f"cannot be loaded: {type(error).__name__}: {error}"
    return None


def _first_line(*command: str) -> str | None:
    import shutil
    import subprocess

    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.partition("\n")[0].strip() or None
