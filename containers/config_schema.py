"""The JSON schema of an OpsConfig, from which editors complete op and implementation names."""

from __future__ import annotations

from typing import Any

from kernelkit.containers.choice import AUTO
from kernelkit.containers.presets import PRESETS
from kernelkit.registry import KernelRegistry


def ops_schema(registry: KernelRegistry, *, title: str, description: str) -> dict[str, Any]:
    """A schema that accepts every op of ``registry`` with its implementations and their options, and no other key."""
    settings = {
        "preset": {"enum": [*PRESETS, None], "default": None, "description": "A bundle of implementations."},
        "allow_unused": {
            "type": "boolean",
            "default": False,
            "description": "Naming an op that the model does not have is a warning instead of an error.",
        },
    }
    return {
        "title": title,
        "description": description,
        "type": "object",
        "properties": {**settings, **{op: _op_schema(op, registry) for op in registry.ops}},
        "additionalProperties": False,
    }


def _op_schema(op: str, registry: KernelRegistry) -> dict[str, Any]:
    impls = registry.impls(op)
    forms: list[dict[str, Any]] = [{"enum": [*impls, AUTO]}]
    return {"description": registry.op(op).description, "anyOf": forms + [_impl_schema(op, impl, registry) for impl in impls]}


def _impl_schema(op: str, impl: str, registry: KernelRegistry) -> dict[str, Any]:
    options = registry.list(op, name=impl)[0].options
    known = {} if options is None else options.model_json_schema()
    schema = {
        "type": "object",
        "properties": {"impl": {"const": impl}, **known.get("properties", {})},
        "required": ["impl", *known.get("required", [])],
        "additionalProperties": False,
    }
    return schema | {"$defs": known["$defs"]} if "$defs" in known else schema
