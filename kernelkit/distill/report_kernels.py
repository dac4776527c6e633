"""The kernels of several models beside one another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kernelkit.models.report import KernelReport, KernelRow


@dataclass(frozen=True)
class Comparison:
    """What each model holds in one place.

    Attributes:
        module: the place, with ``*`` for the number of the layer.
        op: what is computed there.
        cells: for each model its kernels there, like layers drawn together; most often one, none where it lacks the op.
        differs: whether the models that have the op use different implementations.
    """

    module: str
    op: str
    cells: tuple[tuple[KernelRow, ...], ...]
    differs: bool


def compare_kernels(reports: Mapping[str, KernelReport]) -> list[Comparison]:
    """Every place of every model once, in the order of the modules; models may differ in their number of layers."""
    places: dict[tuple[str, str], dict[str, list[KernelRow]]] = {}
    for name, report in reports.items():
        for row in report.folded():
            place = re.sub(r"\{[\d,-]+\}|\d+", "*", row.module) or "(model)", row.op
            places.setdefault(place, {}).setdefault(name, []).append(row)
    return [
        Comparison(*place, tuple(tuple(rows.get(name, ())) for name in reports), _differs(rows))
        for place, rows in places.items()
    ]


def _differs(rows: Mapping[str, list[KernelRow]]) -> bool:
    return len({frozenset(row.impl for row in own) for own in rows.values()}) > 1
