"""The part of a config that says which kernels some modules of a model should have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from kernelkit.containers.choice import KernelChoice
from kernelkit.containers.choice_reader import read_choice
from kernelkit.containers.legacy import migrate
from kernelkit.containers.path_pattern import PathPattern
from kernelkit.errors import Loc, Problem, shown
from kernelkit.frozen import FrozenDict
from kernelkit.registry import KernelRegistry

KEY = "overrides"
"""The key of a config."""

Overrides = Mapping[str, Mapping[str, KernelChoice]]
"""The choice by pattern of module paths and by op."""


@dataclass(frozen=True, slots=True)
class OverrideRule:
    """What a config says of one op in some modules.

    Attributes:
        pattern: their paths; see :class:`PathPattern`.
        op: name of the op.
        choice: its implementation there.
    """

    pattern: str
    op: str
    choice: KernelChoice

    @property
    def loc(self) -> Loc:
        """Where the user wrote it."""
        return KEY, self.pattern, self.choice.key

    @property
    def why(self) -> str:
        """How the report shows that this rule has decided."""
        return f"{KEY} {self.pattern}"


def rules_in(overrides: Overrides) -> Iterator[OverrideRule]:
    """The rules, one for each pattern and op."""
    for pattern, choices in overrides.items():
        for op, choice in choices.items():
            yield OverrideRule(pattern, op, choice)


def plain_overrides(overrides: Overrides) -> dict[str, dict[str, Any]]:
    """As a config spells them."""
    return {pattern: {op: choice.plain() for op, choice in choices.items()} for pattern, choices in overrides.items()}


def read_overrides(
    value: Any, registry: KernelRegistry, place: Callable[..., str]
) -> tuple[FrozenDict[str, FrozenDict[str, KernelChoice]], list[Problem]]:
    """The overrides that a config holds, and every mistake in them.

    Args:
        value: a mapping of patterns to mappings of ops to choices, which are read as at the top of a config.
        registry: the valid names.
        place: ``"file:line:column: "`` of a loc, for warnings.
    """
    if not isinstance(value, Mapping):
        message = f"{KEY} is {shown(value)}; give a mapping of module paths to ops and their implementations"
        return FrozenDict(), [Problem((KEY,), "overrides_type", message, value)]
    overrides: dict[str, FrozenDict[str, KernelChoice]] = {}
    problems: list[Problem] = []
    for pattern, named in value.items():
        loc = (KEY, pattern if isinstance(pattern, str) else shown(pattern))
        choices, faults = _read_rule(pattern, named, registry, partial(place, *loc))
        problems += [replace(fault, loc=(*loc, *fault.loc)) for fault in faults]
        overrides[str(loc[1])] = FrozenDict(choices)
    return FrozenDict(overrides), problems


def _read_rule(
    pattern: Any, named: Any, registry: KernelRegistry, place: Callable[[str], str]
) -> tuple[dict[str, KernelChoice], list[Problem]]:
    problems = []
    try:
        PathPattern(pattern if isinstance(pattern, str) else shown(pattern))
    except ValueError as error:
        problems.append(Problem((), "path_pattern", str(error), pattern))
    if not isinstance(named, Mapping) or not named:
        message = f"{shown(pattern)} says {shown(named)}; give a mapping of ops to implementations"
        return {}, [*problems, Problem((), "overrides_type", message, named)]
    migrated, written, conflicts = migrate(named, place)
    problems += conflicts
    choices: dict[str, KernelChoice] = {}
    for op, value in migrated.items():
        choice, faults = read_choice(op, value, written.get(op, op), registry, ())
        problems += faults
        if choice is not None:
            choices[registry.op(op).name] = choice
    return choices, problems
