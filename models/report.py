"""Which kernel each module of a model holds, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from torch import nn

from kernelkit.models.injection.module import InjectedModule
from kernelkit.models.injection.places import left_alone
from kernelkit.models.layers.kernel_module import KernelModule


@dataclass(frozen=True)
class KernelRow:
    """One kernel of one module.

    Attributes:
        module: dotted path of the module in the model; empty for the model itself.
        op, variant, impl: the kernel; ``stock`` where an injected model leaves the op to transformers.
        why: ``named``, ``preset <name>``, ``default``, ``auto: <reason>`` or ``override``.
    """

    module: str
    op: str
    variant: str
    impl: str
    why: str


@dataclass(frozen=True)
class KernelReport:
    """The kernels of one model instance; printing it shows a table with like layers drawn together.

    Attributes:
        model: class name.
        rows: one for each module and op, in the order of the modules.
        left_alone: path and class of those modules of an injected model that no family knows.
    """

    model: str
    rows: tuple[KernelRow, ...]
    left_alone: tuple[tuple[str, str], ...] = ()

    @property
    def impls(self) -> dict[str, set[str]]:
        """The implementations in use by op."""
        return {
            op: {row.impl for row in self.rows if row.op == op} for op in dict.fromkeys(row.op for row in self.rows)
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        kernels = [asdict(row) for row in self.rows]
        return {"model": self.model, "kernels": kernels, "left_alone": [list(pair) for pair in self.left_alone]}

    def __str__(self) -> str:
        heading = ("module", "op", "variant", "impl", "why")
        lines = [
            heading,
            *((row.module or "(model)", row.op, row.variant, row.impl, row.why) for row in self.folded()),
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        alone = KernelReport("", tuple(KernelRow(path, kind, "", "", "") for path, kind in self.left_alone))
        left = [f"left alone: {row.module} ({row.op})" for row in alone.folded()]
        return "\n".join([f"Kernels of {self.model}", table[0], "-" * (sum(widths) + 8), *table[1:], *left])

    def folded(self) -> Iterator[KernelRow]:
        """Rows that differ only in the number of the layer, as one: ``model.layers.{0-27}.mlp``."""

        def alike(row: KernelRow) -> tuple[str, ...]:
            return (re.sub(r"\d+", "*", row.module), row.op, row.variant, row.impl, row.why)

        order = list(dict.fromkeys(map(alike, self.rows)))
        for key, rows in groupby(sorted(self.rows, key=lambda row: order.index(alike(row))), key=alike):
            (folded,) = folded_paths(row.module for row in rows)
            yield KernelRow(folded, *key[1:])


def kernel_report(model: nn.Module) -> KernelReport:
    """The kernels that ``model`` holds, module by module.

    Raises:
        TypeError: for anything but an ``nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"kernel_report takes a model, not a {type(model).__name__}")
    rows = [
        KernelRow(path, binding.op, binding.variant, binding.impl, binding.why)
        for path, module in model.named_modules()
        if isinstance(module, KernelModule)
        for binding in module.bindings.values()
    ]
    injected = any(isinstance(module, InjectedModule) for module in model.modules())
    return KernelReport(type(model).__name__, tuple(rows), tuple(left_alone(model)) if injected else ())


def folded_paths(paths: Iterable[str]) -> list[str]:
    """Paths that differ only in the number of the layer, as one each: ``model.layers.{0-27}.mlp``."""
    layers: dict[str, list[int]] = {}
    for path in paths:
        numbers = layers.setdefault(re.sub(r"\d+", "*", path), [])
        numbers += [int(found[0])] if (found := re.search(r"\d+", path)) else []
    return [path.replace("*", _ranges(numbers), 1) for path, numbers in layers.items()]


def _ranges(numbers: list[int]) -> str:
    """``{0-3,5}`` for 0, 1, 2, 3, 5; a single number stands alone."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    spans = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return spans[0] if len(numbers) == 1 else "{" + ",".join(spans) + "}"
