"""Fused training kernels, chosen per model instance.

The public names are imported when they are first used, so that ``import kernelkit`` costs nothing: neither torch nor
transformers is loaded by it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelkit import models
    from kernelkit.containers import KernelContainer, OpsConfig
    from kernelkit.hardware import Hardware, HardwareRequirement
    from kernelkit.models import build_model, eject, inject, kernel_report
    from kernelkit.registry import KernelRegistry, default_registry, register_kernel
    from kernelkit.spec import KernelSpec, Op

__version__ = "0.1.0"

__all__ = [
    "Hardware",
    "HardwareRequirement",
    "KernelContainer",
    "KernelRegistry",
    "KernelSpec",
    "Op",
    "OpsConfig",
    "build_model",
    "default_registry",
    "eject",
    "inject",
    "kernel_report",
    "models",
    "register_kernel",
]

_HOMES = {
    "KernelContainer": "kernelkit.containers",
    "OpsConfig": "kernelkit.containers",
    "Hardware": "kernelkit.hardware",
    "HardwareRequirement": "kernelkit.hardware",
    "build_model": "kernelkit.models",
    "eject": "kernelkit.models",
    "inject": "kernelkit.models",
    "kernel_report": "kernelkit.models",
    "KernelRegistry": "kernelkit.registry",
    "default_registry": "kernelkit.registry",
    "register_kernel": "kernelkit.registry",
    "KernelSpec": "kernelkit.spec",
    "Op": "kernelkit.spec",
}


def __getattr__(name: str) -> Any:
    if name == "models":
        return importlib.import_module("kernelkit.models")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
