"""Which implementations were fastest, and on which GPU: what a published benchmark leaves in the package."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from kernelkit.hardware import Capability, Hardware

SHIPPED = Path(__file__).with_name("measurements.json")
"""Written by ``kernelkit bench --publish`` in a checkout, and installed with the package."""


class Ranking(BaseModel):
    """The implementations of one variant of an op, in one pass, as one run measured them.

    Attributes:
        op, variant: what was measured.
        passes: ``fwd`` or ``fwd+bwd``; in files, ``pass``.
        date: day of the run, ``2026-11-25``.
        impls: the fastest first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    op: str
    variant: str
    passes: Literal["fwd", "fwd+bwd"] = Field(alias="pass")
    date: str
    impls: tuple[str, ...]


class MeasuredGpu(BaseModel):
    """What was measured on one kind of GPU.

    Attributes:
        gpu: its name, as the driver gives it.
        capability: its compute capability; None for one that is not NVIDIA's, or where it was not written down.
        rankings: of each variant and pass at most one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: str
    capability: Capability | None
    rankings: tuple[Ranking, ...]

    def is_of(self, hardware: Hardware) -> bool:
        """Whether this was measured on such a device: of the same name, or of the common one (``h200``)."""
        words = re.split(r"[^a-z0-9]+", self.gpu.lower())
        called = hardware.name == self.gpu or hardware.name.lower() in words
        return called and self.capability in (None, hardware.capability)

    def ranking(self, op: str, variant: str, passes: str) -> Ranking | None:
        """That of a variant and a pass, or None where it was not measured."""
        key = (op, variant, passes)
        return next((each for each in self.rankings if (each.op, each.variant, each.passes) == key), None)


GPUS = TypeAdapter(tuple[MeasuredGpu, ...])


def read(path: Path) -> tuple[MeasuredGpu, ...]:
    """The measurements in a file.

    Raises:
        ValidationError: for anything else.
    """
    return GPUS.validate_json(path.read_bytes())


def text_of(gpus: Iterable[MeasuredGpu]) -> str:
    """A file of ``gpus``, which :func:`read` reads."""
    return GPUS.dump_json(tuple(gpus), by_alias=True, indent=1).decode() + "\n"


@functools.cache
def shipped() -> tuple[MeasuredGpu, ...]:
    """The measurements that are installed with this package."""
    return read(SHIPPED)
