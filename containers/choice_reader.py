"""Reading what a config says of one op, and every mistake in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from kernelkit.containers.choice import AUTO, KernelChoice
from kernelkit.containers.legacy import VALUES
from kernelkit.errors import Problem, listing, problems_in, shown, unknown
from kernelkit.registry import RESERVED, KernelRegistry

Read = tuple[KernelChoice | None, list[Problem]]
"""The choice; or None, and what is wrong."""


def read_choice(op: Any, value: Any, key: Any, registry: KernelRegistry, settings: Collection[str]) -> Read:
    """The choice that ``op: value`` makes.

    Args:
        op: our name of the op.
        value: a name, a mapping of ``impl`` and options, or a choice.
        key: the key that the user wrote, at which problems point.
        registry: the valid names.
        settings: keys of a config that are no ops, for the list of valid ones; none where only ops may stand.
    """
    if isinstance(value, KernelChoice):
        key, value = value.key or key, value.plain()
    if not isinstance(op, str) or op not in registry.ops:
        return None, [_unknown_op(op, value, key, registry, settings)]
    options = dict(value) if isinstance(value, Mapping) else {}
    impl = options.pop("impl", None) if isinstance(value, Mapping) else value
    valid = [*registry.impls(op), AUTO]
    if not isinstance(impl, str):
        message = f"{op} is {shown(value)}; give a name, or a mapping with the key 'impl'. Valid: {listing(valid)}."
        return None, [Problem((key,), "impl_type", message, value)]
    if impl not in valid:
        message = unknown("implementation", impl, valid, of=op, meant=VALUES.get(impl)) + _broken(registry)
        return None, [Problem((key,), "unknown_impl", message, impl)]
    # The registry's own string: the user's may be an enum, which neither JSON nor YAML can write.
    impl = valid[valid.index(impl)]
    model = None if impl == AUTO else registry.list(op, name=impl)[0].options
    return _with_options(op, impl, options, key, model)


def _unknown_op(op: Any, value: Any, key: Any, registry: KernelRegistry, settings: Collection[str]) -> Problem:
    loc = (key if isinstance(key, str) else shown(key),)
    if settings and op in RESERVED and op not in settings:
        return Problem(loc, "unknown_op", f"the key {op!r} is kept for a later version and means nothing yet", value)
    return Problem(loc, "unknown_op", unknown("op", op, [*registry.ops, *settings]) + _broken(registry), value)


def _with_options(op: str, impl: str, options: dict[Any, Any], key: str, model: type[BaseModel] | None) -> Read:
    if model is None:
        message = f"{op}: {impl} takes no options"
        names = [name if isinstance(name, str) else shown(name) for name in options]
        faults = [Problem((key, name), "unknown_option", message, options) for name in names]
        return (None, faults) if faults else (KernelChoice.of(impl, {}, key), [])
    try:
        given = model.model_validate(options)
    except ValidationError as error:
        hint = f" (options of {op}: {impl} are {listing(model.model_fields)})"
        return None, [replace(each, message=each.message + hint) for each in problems_in(error, (key,))]
    try:
        # By alias and without computed fields: what is written must be what can be read.
        plain = given.model_dump(mode="json", exclude_unset=True, by_alias=True, round_trip=True)
        choice = KernelChoice.of(impl, {name: plain[name] for name in [*options, *plain] if name in plain}, key)
        model.model_validate_json(choice.options_json)
    except (PydanticSerializationError, ValueError, RecursionError):
        message = f"{op}: {impl}: options are kept as JSON, and JSON cannot hold {shown(options)}"
        return None, [Problem((key,), "option_type", message, options)]
    return choice, []


def _broken(registry: KernelRegistry) -> str:
    reasons = [f"{name}: {reason}" for name, reason in registry.broken_plugins.items()]
    return f" A plug-in could not be loaded: {'; '.join(reasons)}." if reasons else ""
