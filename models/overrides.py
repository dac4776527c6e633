"""Other kernels for some modules of a model, as the overrides of a config say."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from kernelkit.caller import warn_user
from kernelkit.containers.bindings import Binding, Need
from kernelkit.containers.kernel_container import KernelContainer, merged_needs
from kernelkit.containers.ops_config import OpsConfig
from kernelkit.containers.override_rules import OverrideRule, rules_in
from kernelkit.containers.path_pattern import PathPattern
from kernelkit.containers.resolution import ALLOW_UNUSED, Refusal
from kernelkit.errors import Problem, UnusedOpWarning, listing, validation_error
from kernelkit.models.layers.kernel_module import KernelModule
from kernelkit.models.report import folded_paths

Holders = dict[str, KernelModule]
"""The modules that call kernels, by path."""


@dataclass(frozen=True)
class Placement:
    """One module in which a rule decides.

    Attributes:
        path: the module's.
        module: itself.
        rule: what decides there.
    """

    path: str
    module: KernelModule
    rule: OverrideRule

    @property
    def variant(self) -> str:
        """The variant that the module calls."""
        return self.module.bindings[self.rule.op].variant


def apply_overrides(
    model: nn.Module, container: KernelContainer, needs: Iterable[Need] = (), *, device: Any = None, dtype: Any = None
) -> None:
    """Rebind the modules of ``model`` that the overrides of the container's config are about; all of them or none.

    Args:
        model: any module whose :class:`KernelModule` s are bound already.
        container: it binds, and its config holds the overrides.
        needs: the sizes that the model's kernels must take, as in :meth:`KernelContainer.bind`.
        device, dtype: likewise.

    Raises:
        ValidationError: for a rule that fits no module, two that fit the same, and a kernel that cannot serve there.
    """
    for placement, binding in override_bindings(model, container, needs, device=device, dtype=dtype):
        placement.module.rebind(binding)


def override_bindings(
    model: nn.Module, container: KernelContainer, needs: Iterable[Need] = (), *, device: Any = None, dtype: Any = None
) -> list[tuple[Placement, Binding]]:
    """What :func:`apply_overrides` would bind, and where; ``model`` may be on the meta device."""
    config: OpsConfig = container.config()
    sizes = {(need.op, need.variant): need.sizes for need in merged_needs(needs)}
    bindings: dict[tuple[OverrideRule, str], Binding] = {}
    problems: list[Problem] = []
    placed = placements(model, config)
    for rule, variant in dict.fromkeys((each.rule, each.variant) for each in placed):
        need = Need(rule.op, variant, sizes.get((rule.op, variant), {}))
        try:
            bindings[rule, variant] = container.bind_rule(rule, need, device=device, dtype=dtype)
        except Refusal as refusal:
            problems.append(refusal.problem)
    if not problems:
        found = [(each, bindings[each.rule, each.variant]) for each in placed]
        problems += _bypassed(model, found, container)
    if problems:
        raise config.locate(validation_error(type(model).__name__, problems))
    return found


def _bypassed(model: nn.Module, found: list[tuple[Placement, Binding]], container: KernelContainer) -> list[Problem]:
    """What is wrong with rules for a part of a fused op, which a kernel around them, named by nobody, computes too."""
    config, ops, modules = container.config(), container.registry().ops, dict(model.named_modules())
    decided = {(each.path, each.rule.op): binding for each, binding in found}
    problems: dict[OverrideRule, Problem] = {}
    for placement, part in found:
        for path in _upwards(placement.path):
            held = getattr(modules[path], "bindings", {})
            around = [op for op in held if op in ops and part.op in ops[op].parts]
            for op in around:
                fused = decided.get((path, op), held[op])
                named = op in config.choices or (path, op) in decided or fused.spec is None
                if not named and fused.impl not in ("eager", part.impl):
                    problems.setdefault(placement.rule, _bypass(placement, part, fused))
            if around:  # what is farther out computes the parts of other modules
                break
    return [*problems.values()]


def _upwards(path: str) -> Iterator[str]:
    """The path itself, and those of the modules that it is in."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _bypass(placement: Placement, part: Binding, fused: Binding) -> Problem:
    message = (
        f"{part.op}: {part.impl} ({part.why}) at {placement.path} may be passed by: {fused.op}: {fused.impl} "
        f"({fused.why}) computes it too. Name {fused.op}: eager there, which calls it, or {fused.op}: {fused.impl}."
    )
    return Problem(placement.rule.loc, "bypassed_kernel", message, part.impl)


def placements(model: nn.Module, config: OpsConfig) -> list[Placement]:
    """The modules that the overrides of ``config`` are about.

    Raises:
        ValidationError: for a rule that fits no module, and two that fit the same.
    """
    holders = {path: each for path, each in model.named_modules() if isinstance(each, KernelModule)}
    name = type(model).__name__
    placed: dict[tuple[str, str], Placement] = {}
    problems: dict[tuple[OverrideRule, OverrideRule | None], Problem | None] = {}
    for rule in rules_in(config.overrides):
        pattern = PathPattern(rule.pattern)
        covered = [path for path, module in holders.items() if rule.op in module.bindings and pattern.covers(path)]
        if not covered:
            problems[rule, None] = _unplaced(rule, holders, config, name)
        for path in covered:
            placement = Placement(path, holders[path], rule)
            first = placed.setdefault((path, rule.op), placement)
            if first is not placement:
                problems.setdefault((rule, first.rule), _collision(first.rule, placement))
    found = [problem for problem in problems.values() if problem is not None]
    if found:
        raise config.locate(validation_error(name, found))
    return [*placed.values()]


def _unplaced(rule: OverrideRule, holders: Holders, config: OpsConfig, model: str) -> Problem | None:
    """What is wrong with a rule that fits no module; a warning instead where the config allows ops that are missing."""
    having = [path for path, module in holders.items() if rule.op in module.bindings]
    if having:
        near = difflib.get_close_matches(rule.pattern, folded_paths(filter(None, having)), n=3, cutoff=0.0)
        hint = f"near it: {listing(near)}" if near else f"the model itself does: name {rule.op} without a path"
        message = f"no module of {model} at {rule.pattern} calls {rule.op}; {hint}"
        return Problem(rule.loc, "unmatched_path", message, rule.pattern)
    present = dict.fromkeys(op for module in holders.values() for op in module.bindings)
    message = f"{model} has no use for {rule.op!r}; it has: {listing(present)}"
    if config.allow_unused:
        warn_user(config.place(*rule.loc) + message, UnusedOpWarning)
        return None
    return Problem(rule.loc, "unused_op", f"{message}. {ALLOW_UNUSED}", rule.op)


def _collision(first: OverrideRule, second: Placement) -> Problem:
    rule = second.rule
    message = f"{first.pattern} and {rule.pattern} both say what {rule.op} is at {second.path or 'the model itself'}"
    return Problem(rule.loc, "colliding_paths", f"{message}; make them fit different modules", rule.pattern)
