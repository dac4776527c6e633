"""VeOmni's field names, read and mapped to ours with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from kernelkit.errors import Problem

SUFFIX = "_implementation"

FIELDS: Mapping[str, str] = {"attn": "attention", "moe": "moe_experts"}
"""Op by VeOmni's name for it, where the two differ. Every other ``<op>_implementation`` names the op itself."""

VALUES: Mapping[str, str] = {
    "liger_kernel": "liger",
    # VeOmni resolves the bare `fused` to quack on a GPU.
    "fused": "quack",
    "fused_triton": "triton",
    "fused_quack": "quack",
    "fused_npu": "npu",
}
"""Impl by VeOmni's name for it, where the two differ."""


def migrate(data: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[str, str], list[Problem]]:
    """Rename legacy keys and values.

    Returns:
        The data under our names; for each op that was renamed, the key that the user wrote; and what is wrong: an old
        and a new name that disagree.
    """
    renamed: dict[Any, Any] = {key: value for key, value in data.items() if not is_legacy(key)}
    written: dict[str, str] = {}
    problems = []
    for key, value in data.items():
        if not is_legacy(key):
            continue
        op = key.removesuffix(SUFFIX)
        op = FIELDS.get(op, op)
        impl = VALUES.get(value, value) if isinstance(value, str) else value
        warnings.warn(f"{key}: {value!r} is VeOmni's spelling; write {op}: {impl}", DeprecationWarning, stacklevel=2)
        if op in renamed and _impl_of(renamed[op]) != impl:
            other = written.get(op, op)
            message = f"{key}: {value!r} and {other}: {_impl_of(renamed[op])!r} disagree; keep only {op}"
            problems.append(Problem((key,), "conflicting_names", message, value))
            continue
        if op not in renamed:
            renamed[op] = impl
            written[op] = key
    return renamed, written, problems


def is_legacy(key: Any) -> bool:
    """Whether ``key`` is one of VeOmni's ``*_implementation`` fields."""
    return isinstance(key, str) and key.endswith(SUFFIX)


def _impl_of(value: Any) -> Any:
    return value.get("impl") if isinstance(value, Mapping) else getattr(value, "impl", value)
