"""The JSON schema of an OpsConfig, from which editors complete op and implementation names."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, GetJsonSchemaHandler

from kernelkit.containers.choice import AUTO
from kernelkit.containers.path_pattern import SYNTAX
from kernelkit.containers.presets import PRESET_NAMES
from kernelkit.registry import KernelRegistry

Schema = dict[str, Any]


def ops_schema(registry: KernelRegistry, handler: GetJsonSchemaHandler, *, title: str, description: str) -> Schema:
    """A schema that accepts every op of ``registry`` with its implementations and their options, and no other key."""
    ops = {op: _op_schema(op, registry, handler) for op in registry.ops}
    settings: Schema = {
        "preset": {"enum": [*PRESET_NAMES, None], "default": None, "description": "A bundle of implementations."},
        "allow_unused": {
            "type": "boolean",
            "default": False,
            "description": "Naming an op that the model does not have is a warning instead of an error.",
        },
        "overrides": {
            "type": "object",
            "description": "Other choices for some modules, by pattern of their paths: layers.[0-3].mlp.",
            "propertyNames": {"pattern": SYNTAX},
            "additionalProperties": {
                "type": "object",
                "properties": ops,
                "minProperties": 1,
                "additionalProperties": False,
            },
        },
        "verify": {
            "enum": ["bind", None],
            "default": None,
            "description": "bind: compare every kernel with eager when a model is built.",
        },
    }
    return {
        "title": title,
        "description": description,
        "type": "object",
        "properties": {**settings, **ops},
        "additionalProperties": False,
    }


def _op_schema(op: str, registry: KernelRegistry, handler: GetJsonSchemaHandler) -> Schema:
    names: list[str] = []
    mappings: list[Schema] = [_mapping(AUTO, None, "", handler)]
    for impl in registry.impls(op):
        spec = registry.list(op, name=impl)[0]
        mappings.append(_mapping(impl, spec.options, spec.description, handler))
        # A name alone leaves every option at its default, which some may not have.
        if spec.options is None or not any(field.is_required() for field in spec.options.model_fields.values()):
            names.append(impl)
    return {"description": registry.op(op).description, "anyOf": [{"enum": [*names, AUTO]}, *mappings]}


def _mapping(impl: str, options: type[BaseModel] | None, description: str, handler: GetJsonSchemaHandler) -> Schema:
    # Through the handler, models inside the options end up among the definitions of the whole schema.
    known = {} if options is None else handler.resolve_ref_schema(handler(options.__pydantic_core_schema__))
    return {
        "type": "object",
        "description": description,
        "properties": {"impl": {"const": impl}, **known.get("properties", {})},
        "required": ["impl", *known.get("required", [])],
        "additionalProperties": False,
    }
