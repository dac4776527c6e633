"""Finding the ops and kernels that kernelkit ships, and the plug-ins that are installed."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from importlib import metadata
from types import ModuleType
from typing import Any

from kernelkit.spec import KernelSpec, Op

ENTRY_POINTS = "kernelkit.kernels"
"""Entry-point group of plug-ins. Each names a callable that takes the registry and registers into it."""


def builtin_ops() -> Iterator[Op]:
    """The contracts under ``kernelkit/ops``; a module there without an ``OP`` is a helper."""
    for module in _modules("kernelkit.ops"):
        if hasattr(module, "OP"):
            yield module.OP


def builtin_specs(op: str) -> Iterator[KernelSpec]:
    """The kernels under ``kernelkit/kernels/<op>``: the ``SPECS`` of each module."""
    for module in _modules(f"kernelkit.kernels.{op}"):
        yield from module.SPECS


def plugins() -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Name, and what fills a registry, of each installed plug-in; nothing of it is imported yet."""
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        yield f"{entry.name} ({entry.value})", functools.partial(_fill_from, entry)


def _fill_from(entry: metadata.EntryPoint, registry: Any) -> None:
    entry.load()(registry)


def _modules(package: str) -> Iterator[ModuleType]:
    """The modules of a package but its jit bodies (``x_kernels``), which need triton to be imported."""
    for found in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not found.name.endswith("_kernels"):
            yield importlib.import_module(f"{package}.{found.name}")
