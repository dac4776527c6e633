"""From the records of a GPU to the order of its implementations, which the presets ``fastest-*`` choose by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from kernelkit.bench.records import Record
from kernelkit.bench.step_cases import STEP
from kernelkit.kernels.measurements import MeasuredGpu, Ranking


def ranked(records: Sequence[Record]) -> MeasuredGpu:
    """What the records of one GPU say of each op, variant and pass; of whole steps, nothing."""
    return MeasuredGpu(gpu=records[0].gpu, capability=records[0].capability, rankings=tuple(_rankings(records)))


def _rankings(records: Sequence[Record]) -> Iterator[Ranking]:
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if record.op != STEP:
            groups.setdefault((record.op, record.variant, record.passes), []).append(record)
    for (op, variant, _), group in groups.items():
        impls = _fastest_first(group)
        if impls:
            yield Ranking(op=op, variant=variant, passes=group[0].passes, date=group[0].date, impls=impls)


def _fastest_first(group: Sequence[Record]) -> tuple[str, ...]:
    """By the geometric mean over the shapes, in which each counts alike; what failed in one of them is left out."""
    shapes = {record.shape for record in group}
    times: dict[str, dict[str, float]] = {}
    for record in group:
        if record.ms:
            times.setdefault(record.impl, {})[record.shape] = record.ms
    means = {impl: math.prod(found.values()) for impl, found in times.items() if found.keys() == shapes}
    return tuple(sorted(means, key=lambda impl: (means[impl], impl)))
