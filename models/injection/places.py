"""Where in a stock model kernels go, and what is left alone."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

from torch import nn

from kernelkit.models.injection.module import InjectedModule, plain_class

FAMILIES = ("gemma3", "llama", "mistral", "qwen2", "qwen3", "qwen3_5", "qwen3_moe", "qwen3_next")
"""Packages in ``transformers.models`` for which there is a file in ``families/``. A new family is a file and a word."""

_ORDINARY = ("torch.", "transformers.activations", "kernelkit.")


def family_of(kind: type[nn.Module]) -> ModuleType | None:
    """The file in ``families/`` for the transformers package in which a class is; None for any other."""
    *package, name, _ = f"..{kind.__module__}".rsplit(".", 2)
    known = package == ["..transformers.models"] and name in FAMILIES
    return importlib.import_module(f"kernelkit.models.injection.families.{name}") if known else None


def stand_in(kind: type[nn.Module]) -> type[InjectedModule] | None:
    """The block that takes the place of an HF class: that of the same name; None for a class without one.

    A subclass of an HF class is another class, which may compute something else.
    """
    block = getattr(family_of(kind), kind.__name__, None)
    return block if getattr(block, "stock", None) is kind else None


def stock_class(module: nn.Module) -> type[nn.Module]:
    """The class of ``module`` without what FSDP2 or an earlier injection made of it."""
    kind = plain_class(module)
    return kind.stock if issubclass(kind, InjectedModule) else kind


def places(model: nn.Module) -> Iterator[tuple[nn.Module, type[InjectedModule]]]:
    """Each module of ``model`` that has a block, with it."""
    for module in model.modules():
        block = stand_in(stock_class(module))
        if block is not None:
            yield module, block


def left_alone(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Path and class of the modules of an injected model that no family knows, without what is inside of them."""
    root = unknown = None
    for path, module in model.named_modules():
        kind = plain_class(module)
        if root is None and issubclass(kind, InjectedModule):
            root = f"{path}." if path else ""
        outside = root is None or not path.startswith(root)
        if outside or (unknown is not None and path.startswith(unknown)) or _is_known(kind):
            continue
        unknown = f"{path}."
        yield path, kind.__name__


def _is_known(kind: type[nn.Module]) -> bool:
    return f"{kind.__module__}.".startswith(_ORDINARY) or kind in getattr(family_of(kind), "STRUCTURE", ())
