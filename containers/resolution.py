"""From what a model needs and what the user wished to one kernel for each need, or the reason why not."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kernelkit.containers.bindings import Binding, Need
from kernelkit.containers.choice import AUTO
from kernelkit.containers.ops_config import OpsConfig
from kernelkit.errors import Problem, listing
from kernelkit.hardware import Hardware
from kernelkit.registry import KernelRegistry
from kernelkit.spec import KernelSpec


@dataclass(frozen=True)
class Conditions:
    """Under which a kernel will run.

    Attributes:
        hardware: the device that the model will live on.
        training: whether gradients will be asked for.
        compiled: whether ``torch.compile`` will trace the model.
        dtype: name of the model's dtype (``bfloat16``), or None where it is not known.
    """

    hardware: Hardware
    training: bool = True
    compiled: bool = False
    dtype: str | None = None

    def problem(self, spec: KernelSpec, need: Need | None = None) -> str | None:
        """Why ``spec`` cannot serve here, or None."""
        reason = spec.problem(self.hardware, training=self.training, compiled=self.compiled, dtype=self.dtype)
        if reason is None and need is not None:
            over = [name for name, most in spec.limits.items() if need.sizes.get(name, 0) > most]
            reason = ", ".join(f"takes a {name} up to {spec.limits[name]}, not {need.sizes[name]}" for name in over)
        return reason or None


class Refusal(Exception):
    """A need that cannot be met, carried by ``problem``; the container gathers all of them into one error."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(frozen=True)
class Wish:
    """What the config says of one op.

    Attributes:
        impl: the implementation, or ``auto``.
        why: who says so.
        loc: where the user wrote it, for errors.
        options_json: options of the kernel.
    """

    impl: str
    why: str
    loc: tuple[str, ...]
    options_json: str = "{}"


def wish_for(op: str, variant: str, config: OpsConfig, registry: KernelRegistry) -> Wish:
    """The named implementation of ``op``, else the preset's, else stock transformers' own."""
    choice = config.choices.get(op)
    if choice is not None:
        return Wish(choice.impl, "named", (choice.key or op,), choice.options_json)
    if op in config.preset_members:
        return Wish(config.preset_members[op], f"preset {config.preset}", ("preset", op))
    return Wish(registry.op(op).default_for(variant), "default", (op,))


def resolve(need: Need, conditions: Conditions, config: OpsConfig, registry: KernelRegistry) -> Binding:
    """The kernel for one need, imported and built.

    Raises:
        Refusal: where the wished implementation lacks the variant, cannot run, or cannot be loaded.
    """
    wish = wish_for(need.op, need.variant, config, registry)
    if wish.impl == AUTO:
        spec, why = _first_that_runs(need, wish, conditions, registry)
    else:
        spec, why = _as_wished(need, wish, conditions, registry), wish.why
    try:
        return Binding.from_spec(spec, why, wish.options_json)
    except Exception as error:  # a kernel's import may raise anything, and the other ops want to be reported too
        message = f"{need.op}: {spec.name} ({why}) cannot be loaded: {type(error).__name__}: {error}"
        raise Refusal(Problem(wish.loc, "unloadable_kernel", message, spec.name)) from error


def _as_wished(need: Need, wish: Wish, conditions: Conditions, registry: KernelRegistry) -> KernelSpec:
    subject = f"{need.op}: {wish.impl} ({wish.why})"
    found = registry.list(need.op, need.variant, wish.impl)
    if not found:
        having = listing(spec.variant for spec in registry.list(need.op, name=wish.impl))
        reason, kind = f"has no variant {need.variant!r}, which the model needs; it has: {having}", "missing_variant"
    else:
        reason, kind = conditions.problem(found[0], need), "unavailable_kernel"
    if reason is not None:
        message = f"{subject} {reason}. {_alternatives(need, conditions, registry)}"
        raise Refusal(Problem(wish.loc, kind, message, wish.impl))
    return found[0]


def _first_that_runs(
    need: Need, wish: Wish, conditions: Conditions, registry: KernelRegistry
) -> tuple[KernelSpec, str]:
    """The first in the op's order of preference that can run here, and what speaks against those before it."""
    order = [*registry.op(need.op).preference, *sorted(registry.impls(need.op, need.variant))]
    against = []
    for name in dict.fromkeys(order):
        for spec in registry.list(need.op, need.variant, name):
            reason = conditions.problem(spec, need)
            if reason is None:
                passed = f"; passed over: {'; '.join(against)}" if against else ""
                return spec, f"auto: first of the op's order of preference that runs here{passed}"
            against.append(f"{name} {reason}")
    message = f"{need.op}: auto finds no implementation of {need.variant!r} that runs here: {listing(against)}"
    raise Refusal(Problem(wish.loc, "unavailable_kernel", message, wish.impl))


def early_problems(config: OpsConfig, registry: KernelRegistry, conditions: Conditions) -> Iterator[Problem]:
    """What is wrong with the named choices before any model is known: those that can run in none of their variants."""
    for op, choice in config.choices.items():
        specs = registry.list(op, name=choice.impl)
        if choice.impl == AUTO or any(conditions.problem(spec) is None for spec in specs):
            continue
        alternatives = _alternatives(Need(op, specs[0].variant), conditions, registry)
        message = f"{op}: {choice.impl} {conditions.problem(specs[0])}. {alternatives}"
        yield Problem((choice.key or op,), "unavailable_kernel", message, choice.impl)


def unused_problems(config: OpsConfig, needs: Iterable[Need], model: str) -> Iterator[Problem]:
    """The named ops that ``model`` does not have; warnings instead where the config allows them."""
    present = dict.fromkeys(need.op for need in needs)
    for op, choice in config.choices.items():
        if op in present:
            continue
        message = f"{model} has no op {op!r}; it has: {listing(present)}"
        if config.allow_unused:
            warnings.warn(message, UserWarning, stacklevel=2)
        else:
            hint = ". Set allow_unused: true to share one config between models."
            yield Problem((choice.key or op,), "unused_op", message + hint, choice.impl)


def _alternatives(need: Need, conditions: Conditions, registry: KernelRegistry) -> str:
    serving = [
        spec.name for spec in registry.list(need.op, need.variant) if conditions.problem(spec, need) is None
    ]
    return f"Available on {conditions.hardware.name} for {need.op} ({need.variant}): {listing(serving)}."
