"""VeOmni's field names, read and mapped to ours with a warning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kernelkit.caller import warn_user
from kernelkit.errors import LegacyNameWarning, Problem, shown

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


def migrate(
    data: Mapping[Any, Any], place: Callable[[str], str]
) -> tuple[dict[Any, Any], dict[str, str], list[Problem]]:
    """Rename legacy keys and values, in place of the ones that were written.

    Args:
        data: what the user wrote.
        place: ``"file:line:column: "`` of a key, for the warnings; an empty string where there is no file.

    Returns:
        The data under our names; for each op that was renamed, the key that the user wrote; and what is wrong: an old
        and a new name that disagree.
    """
    renamed: dict[Any, Any] = {}
    written: dict[str, str] = {}
    problems = []
    for key, value in data.items():
        if not is_legacy(key):
            renamed[key] = value
            continue
        op, impl = _ours(key, value)
        new = f"{op}: {impl if isinstance(impl, str) else shown(impl)}"
        warn_user(f"{place(key)}{key}: {shown(value)} is VeOmni's spelling; write {new}", LegacyNameWarning)
        rival = op if op in data else written.get(op)
        if rival is None:
            renamed[op] = impl
            written[op] = key
        elif _impl_of(data[rival] if rival == op else renamed[op]) != impl:
            message = f"{key}: {shown(value)} and {rival}: {shown(data[rival])} disagree; keep only {op}"
            problems.append(Problem((key,), "conflicting_names", message, value))
    return renamed, written, problems


def is_legacy(key: Any) -> bool:
    """Whether ``key`` is one of VeOmni's ``*_implementation`` fields."""
    return isinstance(key, str) and key.endswith(SUFFIX) and key != SUFFIX


def _ours(key: str, value: Any) -> tuple[str, Any]:
    op = key.removesuffix(SUFFIX)
    return FIELDS.get(op, op), VALUES.get(value, value) if isinstance(value, str) else value


def _impl_of(value: Any) -> Any:
    return value.get("impl") if isinstance(value, Mapping) else getattr(value, "impl", value)
