"""What is wanted of our kernels on a GPU, set against what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from kernelkit.bench.records import Pass, Record
from kernelkit.bench.step_cases import STEP


class Target(BaseModel):
    """One of them.

    Attributes:
        op, variant, shape, passes: of the records that it is for; without a variant, any.
        impl: what is in the name of the implementations, or of the cases of a step, that it is for.
        ms, tokens_per_s, peak_mib: what is wanted, as in a record.
        bound: what keeps the kernel from it, where something does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    op: str
    shape: str
    passes: Pass = Field(alias="pass")
    variant: str | None = None
    impl: str = "triton"
    ms: float | None = None
    tokens_per_s: float | None = None
    peak_mib: float | None = None
    bound: str = ""

    def best(self, records: Sequence[Record]) -> Record | None:
        """The fastest of those implementations."""
        ours = [
            record
            for record in records
            if (record.op, record.shape, record.passes) == (self.op, self.shape, self.passes)
            and self.variant in (None, record.variant)
            and self.impl in record.impl
            and record.ms is not None
        ]
        return min(ours, key=lambda record: record.ms or 0.0, default=None)

    def met_by(self, record: Record) -> bool:
        """In time and in memory."""
        return (
            _at_most(record.ms, self.ms)
            and _at_most(record.peak_mib, self.peak_mib)
            and _at_most(self.tokens_per_s, record.tokens_per_s)
        )


TARGETS = TypeAdapter(dict[str, list[Target]])


def read_targets(path: Path) -> dict[str, list[Target]]:
    """Those of each GPU, by its name; none where there is no such file.

    Raises:
        pydantic.ValidationError: for what is no target.
    """
    return TARGETS.validate_python(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.exists() else {}


def rows(targets: Sequence[Target], records: Sequence[Record]) -> Iterator[tuple[str, str, str, str, str]]:
    """Op and shape, pass, what is wanted, what was reached and by what, and whether that is it, or what bounds it."""
    for target in targets:
        record = target.best(records)
        if record is None:
            continue
        name = target.variant if record.op == STEP else f"`{target.op}`"
        met = "met" if target.met_by(record) else target.bound or "not met"
        wanted = _text(target.ms, target.tokens_per_s, target.peak_mib)
        reached = _text(target.ms and record.ms, record.tokens_per_s, target.peak_mib and record.peak_mib)
        yield f"{name}, {target.shape}", target.passes, wanted, f"{reached} ({record.impl})", met


def _at_most(value: float | None, limit: float | None) -> bool:
    return limit is None or value is None or value <= limit


def _text(ms: float | None, tokens_per_s: float | None, peak_mib: float | None) -> str:
    parts = [f"{ms:.4g} ms"] if ms is not None else []
    parts += [f"{tokens_per_s:,.0f} tokens/s"] if tokens_per_s is not None else []
    return ", ".join(parts + ([f"{peak_mib:,.0f} MiB"] if peak_mib is not None else []))
