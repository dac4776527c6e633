"""What a benchmark leaves: a record for each measurement, in files that are whole whenever a run is killed."""

from __future__ import annotations

import csv
import io
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

import kernelkit
from kernelkit.distill.atomic import replace_text
from kernelkit.hardware import Capability
from kernelkit.packages import installed_packages
from kernelkit.spec import Cost

Pass = Literal["fwd", "fwd+bwd"]

PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "quack-kernels")
"""Whose versions a record names, with kernelkit's and CUDA's."""


class Record(BaseModel):
    """One measurement.

    Attributes:
        op, variant, impl: what was measured; for a whole step, ``step``, the name of its models, and of the case.
        shape: the sizes, ``batch=4 length=4096 hidden_size=4096``.
        passes: ``fwd`` or ``fwd+bwd``; in files, ``pass``.
        ms: time of one call; None where there is an ``error``.
        how: how it was timed; see :class:`kernelkit.bench.timing.Timing`.
        peak_mib: memory over the inputs and the gradients that are returned; of a whole step, all. None on a CPU.
        floor_ms: the least time by the rates of the same run; None for a whole step.
        tb_per_s, tflop_per_s: achieved, of the bytes and flops that the op needs at least.
        of_floor: ``floor_ms`` as a share of ``ms``.
        tokens_per_s, loss: of a whole step; the loss is that of the same weights and tokens in every case.
        error: why there is no time.
        gpu, versions, run: where it was measured, with what, and an id of the run.
        capability: the compute capability of an NVIDIA GPU.
        date: the day of the run, ``2026-11-25``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    op: str
    variant: str
    impl: str
    shape: str
    passes: Pass = Field(alias="pass")
    ms: float | None = None
    how: str = ""
    peak_mib: float | None = None
    floor_ms: float | None = None
    tb_per_s: float | None = None
    tflop_per_s: float | None = None
    of_floor: float | None = None
    tokens_per_s: float | None = None
    loss: float | None = None
    error: str = ""
    gpu: str
    versions: dict[str, str]
    run: str
    capability: Capability | None = None
    date: str = ""

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What two runs have in common."""
        return self.op, self.variant, self.impl, self.shape, self.passes


RECORDS = TypeAdapter(list[Record])


@dataclass(frozen=True)
class Run:
    """Where and with what everything is measured; see :class:`Record`."""

    gpu: str
    versions: Mapping[str, str] = field(default_factory=lambda: found_versions())
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    capability: Capability | None = None
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())

    def record(self, **facts: Any) -> Record:
        """A record of this run."""
        where = {"gpu": self.gpu, "capability": self.capability, "versions": dict(self.versions)}
        return Record(run=self.id, date=self.date, **where, **facts)


def slug_of(gpu: str) -> str:
    """The name of a device for a file: ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def rates(ms: float, floor_ms: float, cost: Cost) -> dict[str, float]:
    """The fields of a record that follow from its time and its cost."""
    return {
        "floor_ms": floor_ms,
        "tb_per_s": cost.bytes / ms / 1e9,
        "tflop_per_s": cost.flops / ms / 1e9,
        "of_floor": floor_ms / ms,
    }


def shape_text(sizes: Mapping[str, Any]) -> str:
    """``batch=4 length=4096 ...``, without what changes nothing of the work."""
    return " ".join(f"{name}={value}" for name, value in sizes.items() if name != "ignored_every")


def found_versions() -> dict[str, str]:
    """Of kernelkit, CUDA and those of :data:`PACKAGES` that are installed."""
    installed = installed_packages()
    found = {"kernelkit": kernelkit.__version__} | {name: installed[name] for name in PACKAGES if name in installed}
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def write(path: Path, records: Sequence[Record]) -> None:
    """``path`` as JSON, and beside it the same as CSV."""
    rows = [record.model_dump(by_alias=True) for record in records]
    replace_text(path, json.dumps(rows, indent=1) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heading = [name if name != "passes" else "pass" for name in Record.model_fields]
    writer.writerow(heading)
    writer.writerows([_cell(row[name]) for name in heading] for row in rows)
    replace_text(path.with_suffix(".csv"), text.getvalue())


def read(path: Path) -> list[Record]:
    """The records of a JSON file.

    Raises:
        ValidationError: for anything else.
    """
    return RECORDS.validate_json(path.read_bytes())


def keep(records: Iterable[Record], path: Path) -> Iterator[Record]:
    """Pass each record on after it was written, with all before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written: list[Record] = []
    for record in records:
        written.append(record)
        write(path, written)
        yield record


def compared(old: Iterable[Record], new: Iterable[Record]) -> Iterator[tuple[Record, Record, float]]:
    """Each new measurement with the old one of the same, and new over old."""
    before = {record.key: record for record in old if record.ms}
    for record in new:
        if record.ms and record.key in before:
            then = before[record.key]
            yield then, record, record.ms / (then.ms or 1.0)


def _cell(value: Any) -> Any:
    return " ".join(f"{name}={version}" for name, version in value.items()) if isinstance(value, dict) else value
