"""The three phases of validating a config file: names and options, machine, model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kernelkit.containers import Binding, KernelContainer, Need, OpsConfig
from kernelkit.containers.override_rules import rules_in
from kernelkit.containers.resolution import Refusal, resolve, wish_for
from kernelkit.errors import Problem, validation_error
from kernelkit.hardware import Hardware
from kernelkit.registry import default_registry


@dataclass(frozen=True)
class Circumstances:
    """What a config file is validated for.

    Attributes:
        hardware: the machine.
        elsewhere: whether that is another machine than this one; its kernels are chosen, but not imported.
        training, compiled, dtype: as in :meth:`KernelContainer.from_config`.
        model: class name and needs of the model, or None for any model.
        skeleton: makes the same model on the meta device, for a config that names its modules.
    """

    hardware: Hardware
    elsewhere: bool = False
    training: bool = True
    compiled: bool = False
    dtype: str | None = None
    model: tuple[str, list[Need]] | None = None
    skeleton: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """One need, and the kernel that it gets or the reason why it gets none."""

    op: str
    variant: str
    impl: str
    why: str


@dataclass
class Verdict:
    """What is to be said about one file; it is valid without errors."""

    file: str
    errors: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    kernels: list[Outcome] = field(default_factory=list)
    missing: list[Outcome] = field(default_factory=list)


def check(path: Path, given: Circumstances) -> Verdict:
    """Validate one file, as far as the first phase that finds something wrong."""
    verdict = Verdict(str(path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        # kernelkit attributes its warnings to whoever called it, and a command is called by typer.
        warnings.filterwarnings("always", module="typer")
        try:
            _resolve_into(verdict, path, given)
        except ValidationError as error:
            verdict.errors = [_plain(line, verdict.file) for line in error.errors(include_url=False)]
    verdict.warnings = [str(warning.message) for warning in caught]
    return verdict


def _resolve_into(verdict: Verdict, path: Path, given: Circumstances) -> None:
    registry = default_registry().without_factories() if given.elsewhere else None
    container = KernelContainer.from_config(
        OpsConfig.from_yaml(path),
        registry=registry,
        hardware=given.hardware,
        training=given.training,
        compiled=given.compiled,
        dtype=given.dtype,
    )
    if given.model is None:
        _for_any_model(container, verdict)
    else:
        name, needs = given.model
        verdict.kernels = [_chosen(binding) for binding in container.bind(needs, model=name).values()]
        if container.config().overrides and given.skeleton is not None:
            from kernelkit.models.overrides import override_bindings

            placed = override_bindings(given.skeleton(), container, needs)
            verdict.kernels += dict.fromkeys(_chosen(binding) for _, binding in placed)


def _for_any_model(container: KernelContainer, verdict: Verdict) -> None:
    """Every variant of every op.

    A preset's member that runs in none of its variants is an error: a model that has the op would be refused.
    """
    config, registry = container.config(), container.registry()
    problems: list[Problem] = []
    named = [(rule.op, rule) for rule in rules_in(config.overrides)]
    for name, rule in [*((name, None) for name in registry.ops), *named]:
        op, refusals = registry.op(name), []
        for variant in op.variants:
            try:
                binding = resolve(Need(name, variant), container.conditions(), config, registry, rule)
                verdict.kernels.append(_chosen(binding))
            except Refusal as refusal:
                wish = wish_for(name, variant, config, registry, container.conditions(), rule)
                refusals.append(refusal.problem)
                verdict.missing.append(Outcome(name, variant, wish.impl, refusal.problem.message))
        if len(refusals) == len(op.variants) and refusals[0].loc[0] == "preset":
            problems.append(refusals[0])
    if problems:
        raise config.locate(validation_error("KernelContainer", problems))


def _chosen(binding: Binding) -> Outcome:
    return Outcome(binding.op, binding.variant, binding.impl, binding.why)


def _plain(line: Any, file: str) -> dict[str, Any]:
    """One line of a pydantic error as JSON values; the place is apart from the message."""
    place = {"file": file, "line": 1, "column": 1} | {
        key: value for key, value in line.get("ctx", {}).items() if key in ("line", "column")
    }
    prefix = f"{file}:{place['line']}:{place['column']}: "
    return place | {"loc": list(line["loc"]), "type": line["type"], "message": line["msg"].removeprefix(prefix)}


def folded(outcomes: list[Outcome]) -> Iterator[tuple[str, str, str, str]]:
    """Rows of op, variants, impl and why; variants of an op that share the rest share a row."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for outcome in outcomes:
        rows.setdefault((outcome.op, outcome.impl, outcome.why), []).append(outcome.variant)
    for (op, impl, why), variants in rows.items():
        yield op, ", ".join(variants), impl, why
