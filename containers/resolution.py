"""From what a model needs and what the user wished to one kernel for each need, or the reason why not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kernelkit.caller import warn_user
from kernelkit.containers.bindings import Binding, Need
from kernelkit.containers.choice import AUTO
from kernelkit.containers.ops_config import OpsConfig
from kernelkit.containers.override_rules import OverrideRule, rules_in
from kernelkit.containers.presets import MEASURED_PRESETS, preset_member
from kernelkit.errors import Loc, Problem, UnusedOpWarning, listing, unknown
from kernelkit.hardware import Hardware
from kernelkit.kernels.measurements import MeasuredGpu
from kernelkit.registry import KernelRegistry
from kernelkit.spec import KernelSpec

ALLOW_UNUSED = "Set allow_unused: true to share one config between models."
"""What to do where a config names an op that the model does not have."""


@dataclass(frozen=True)
class Conditions:
    """Under which a kernel will run.

    Attributes:
        hardware: the device that the model will live on.
        training: whether gradients will be asked for.
        compiled: whether ``torch.compile`` will trace the model.
        dtype: name of the model's dtype (``bfloat16``), or None where it is not known.
        measurements: which implementations were fastest where, for the presets that choose by it.
    """

    hardware: Hardware
    training: bool = True
    compiled: bool = False
    dtype: str | None = None
    measurements: tuple[MeasuredGpu, ...] = ()

    @property
    def measured(self) -> MeasuredGpu | None:
        """What was measured on this hardware."""
        return next((gpu for gpu in self.measurements if gpu.is_of(self.hardware)), None)

    def problem(self, spec: KernelSpec, need: Need | None = None) -> str | None:
        """Why ``spec`` cannot serve here, or None."""
        reason = spec.problem(self.hardware, training=self.training, compiled=self.compiled, dtype=self.dtype)
        if reason is None and need is not None:
            over = [(name, most) for name, most in spec.limits.items() if need.sizes.get(name, 0) > most]
            reason = " and ".join(f"takes a {name} up to {most}, not {need.sizes[name]}" for name, most in over)
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
        options_json: options of the kernel, as JSON.
        order: in which ``auto`` tries the implementations, if it is not the op's own; no others are tried then.
    """

    impl: str
    why: str
    loc: Loc
    options_json: str = "{}"
    order: tuple[str, ...] = ()


def wish_for(
    op: str,
    variant: str,
    config: OpsConfig,
    registry: KernelRegistry,
    conditions: Conditions,
    rule: OverrideRule | None = None,
) -> Wish:
    """What ``rule`` says, else the named implementation of ``op``, else the preset's, else stock transformers' own.

    Raises:
        Refusal: where a preset goes by measurements, and there are none of this hardware.
    """
    if rule is not None:
        return Wish(rule.choice.impl, rule.why, rule.loc, rule.choice.canonical_options)
    choice = config.choices.get(op)
    if choice is not None:
        return Wish(choice.impl, "named", (choice.key,), choice.canonical_options)
    member = preset_member(config.preset, op)
    if member is not None:
        return Wish(member, f"preset {config.preset}", ("preset", op))
    if config.preset is not None and config.preset in MEASURED_PRESETS:
        fastest = _fastest(op, variant, config.preset, conditions)
        if fastest is not None:
            return fastest
    return Wish(registry.op(op).default_for(variant), "default", (op,))


def _fastest(op: str, variant: str, preset: str, conditions: Conditions) -> Wish | None:
    gpu = conditions.measured
    if gpu is None:
        raise Refusal(_unmeasured(("preset", op), preset, conditions))
    ranking = gpu.ranking(op, variant, MEASURED_PRESETS[preset])
    if ranking is None:
        return None
    why = f"preset {preset}: fastest in the benchmark of {gpu.gpu}, {ranking.date}"
    return Wish(AUTO, why, ("preset", op), order=ranking.impls)


def _unmeasured(loc: Loc, preset: str, conditions: Conditions) -> Problem:
    """What is wrong with a preset that goes by measurements, on hardware of which there are none."""
    known = [gpu.gpu for gpu in conditions.measurements]
    message = (
        f"the preset {preset} chooses by measurements, and there are none of {conditions.hardware}. "
        f"Measured so far: {listing(known) if known else 'nothing'}. Name another preset or the ops themselves; "
        "kernelkit bench measures."
    )
    return Problem(loc, "unmeasured_hardware", message, preset)


def resolve(
    need: Need, conditions: Conditions, config: OpsConfig, registry: KernelRegistry, rule: OverrideRule | None = None
) -> Binding:
    """The kernel for one need, imported and built; in the modules of ``rule``, if one is given.

    Raises:
        Refusal: where the wished implementation lacks the variant, cannot run, or cannot be loaded.
    """
    wish = wish_for(need.op, need.variant, config, registry, conditions, rule)
    if wish.impl == AUTO:
        spec, why = _first_that_runs(need, wish, conditions, registry)
        why += f" ({wish.why})" if rule else ""
    else:
        spec, why = _as_wished(need, wish, conditions, registry), wish.why
    try:
        return Binding.from_spec(spec, why, wish.options_json)
    except Exception as error:  # a kernel's import may raise anything, and the other ops want to be reported too
        message = f"{need.op}: {spec.name} ({why}) cannot be loaded: {type(error).__name__}: {error}"
        raise Refusal(Problem(wish.loc, "unloadable_kernel", message, spec.name)) from error


def _as_wished(need: Need, wish: Wish, conditions: Conditions, registry: KernelRegistry) -> KernelSpec:
    subject = f"{need.op}: {wish.impl} ({wish.why})"
    specs = {spec.variant: spec for spec in registry.list(need.op, name=wish.impl)}
    if not specs:  # of a preset or an op's default; what the user names is checked when the config is read
        kind, reason = "unknown_impl", "does not exist in this registry"
    elif need.variant not in specs:
        kind, reason = (
            "missing_variant",
            f"has no variant {need.variant!r}, which the model needs, only {listing(specs)}",
        )
    else:
        kind, reason = "unavailable_kernel", conditions.problem(specs[need.variant], need) or ""
    if reason:
        message = f"{subject} {reason}. {_alternatives(need, conditions, registry)}"
        raise Refusal(Problem(wish.loc, kind, message, wish.impl))
    return specs[need.variant]


def _first_that_runs(
    need: Need, wish: Wish, conditions: Conditions, registry: KernelRegistry
) -> tuple[KernelSpec, str]:
    """The first in the op's order of preference that can run here, and what speaks against those before it."""
    order = wish.order or (*registry.op(need.op).preference, *sorted(registry.impls(need.op, need.variant)))
    chosen = wish.why if wish.order else "auto: first of the op's order of preference that runs here"
    against: list[str] = []
    for name in dict.fromkeys(order):
        specs = registry.list(need.op, need.variant, name)
        if wish.order and not specs:
            against.append(f"{name} does not exist in this registry")
        for spec in specs:
            reason = conditions.problem(spec, need) or _must_be_named(spec)
            if reason is None:
                passed = f"; passed over: {'; '.join(against)}" if against else ""
                return spec, f"{chosen}{passed}"
            against.append(f"{name} {reason}")
    who = wish.why if wish.order else "auto"
    message = (
        f"{need.op}: {who} finds no implementation of {need.variant!r} that runs here: {'; '.join(against) or 'none'}"
    )
    raise Refusal(Problem(wish.loc, "unavailable_kernel", message, wish.impl))


def _must_be_named(spec: KernelSpec) -> str | None:
    """Why nobody but the user can choose ``spec``, or None."""
    fields = spec.options.model_fields if spec.options else {}
    required = [name for name, field in fields.items() if field.is_required()]
    if required:
        return f"needs to be told {listing(required)}"
    return f"refuses {spec.refuses}" if spec.refuses else None


def early_problems(config: OpsConfig, registry: KernelRegistry, conditions: Conditions) -> Iterator[Problem]:
    """What is wrong with the named choices before any model is known: those that can run in none of their variants."""
    if config.preset in MEASURED_PRESETS and conditions.measured is None:
        yield _unmeasured(("preset",), str(config.preset), conditions)
    wishes = [(op, wish_for(op, "", config, registry, conditions)) for op in config.choices]
    wishes += [
        (rule.op, wish_for(rule.op, "", config, registry, conditions, rule)) for rule in rules_in(config.overrides)
    ]
    for op, wish in wishes:
        specs = registry.list(op, name=wish.impl)
        reasons = [conditions.problem(spec) for spec in specs]
        if wish.impl == AUTO or None in reasons:
            continue
        alternatives = _alternatives(Need(op, specs[0].variant), conditions, registry)
        message = f"{op}: {wish.impl} ({wish.why}) {reasons[0]}. {alternatives}"
        yield Problem(wish.loc, "unavailable_kernel", message, wish.impl)


def unregistered_problem(need: Need, registry: KernelRegistry) -> Problem | None:
    """What is wrong with a need for an op or variant that the registry does not have."""
    if need.op not in registry.ops:
        return Problem((need.op,), "unknown_op", f"the model needs an {unknown('op', need.op, registry.ops)}", need.op)
    variants = registry.op(need.op).variants
    if need.variant not in variants:
        message = f"the model needs an {unknown('variant', need.variant, variants, of=need.op)}"
        return Problem((need.op,), "unknown_variant", message, need.variant)
    return None


def bypass_problem(binding: Binding, config: OpsConfig, registry: KernelRegistry) -> Problem | None:
    """What is wrong with a fused kernel that a preset brings, beside a part of it for which the user named another one.

    Only the eager kernel of a fused op calls its parts; where the user named both, the fused op comes first.
    """
    if binding.impl == "eager" or binding.op in config.choices or binding.spec is None:
        return None
    for part in registry.op(binding.op).parts:
        choice = config.choices.get(part)
        if choice is not None and choice.impl not in (AUTO, binding.impl):
            fused = f"{binding.op}: {binding.impl}"
            message = (
                f"{part}: {choice.impl} (named) would be passed by: {fused} ({binding.why}) computes it too. "
                f"Name {binding.op}: eager, which calls it, or {fused} to mean both."
            )
            return Problem((choice.key,), "bypassed_kernel", message, choice.impl)
    return None


def unused_problems(
    config: OpsConfig, overridden: Iterable[str], needs: Iterable[Need], model: str
) -> Iterator[Problem]:
    """The named and overridden ops that ``model`` does not have; warnings instead where the config allows them.

    Args:
        config: the names.
        overridden: ops of which an override would serve nothing.
        needs: what the model has.
        model: its name.
    """
    present = dict.fromkeys(need.op for need in needs)
    named = {op: choice.key for op, choice in config.choices.items() if op not in present}
    for op, key in (named | {op: op for op in overridden if op not in named}).items():
        message = f"{model} has no use for {op!r}; it has: {listing(present)}"
        if config.allow_unused:
            warn_user(config.place(key) + message, UnusedOpWarning)
        else:
            yield Problem((key,), "unused_op", f"{message}. {ALLOW_UNUSED}", op)


def _alternatives(need: Need, conditions: Conditions, registry: KernelRegistry) -> str:
    here, specs = conditions.hardware, registry.list(need.op, need.variant)
    serving = [spec.name for spec in specs if conditions.problem(spec, need) is None]
    lacking = [spec.name for spec in specs if spec.hardware.problem(here) is None and spec.missing_packages(here)]
    also = f"; once their packages are installed, also: {listing(lacking)}" if lacking else ""
    return f"Available on {here.name} for {need.op} ({need.variant}): {listing(serving)}{also}."
