"""What a run measures, and what takes it in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from kernelkit.errors import shown
from kernelkit.frozen import FrozenDict

Kind = Literal["train", "eval"]

FIELDS = ("stage", "kind", "step", "note")
"""What a line of JSON holds beside the figures, and what no figure may be called."""


@dataclass(frozen=True)
class Record:
    """What was measured at one step.

    Attributes:
        stage: which model is trained, such as ``"student"``.
        kind: whether the step was one of training, or an evaluation after it.
        step: optimizer steps done, from 1; 0 for an evaluation before training.
        figures: by name. They are kept as floats.
        note: anything in words, such as the id of the batch.
    """

    stage: str
    kind: Kind
    step: int
    figures: Mapping[str, float]
    note: str = ""

    def __post_init__(self) -> None:
        if taken := [name for name in FIELDS if name in self.figures]:
            raise ValueError(f"a figure cannot be called {taken[0]!r}, like a field of the record")
        floats = FrozenDict({name: float(value) for name, value in self.figures.items()})
        object.__setattr__(self, "figures", floats)

    def to_json(self) -> str:
        """One flat object in one line: stage, kind, step, the figures, note.

        Every float is read back as the same float. JSON has no word for those that are not finite, so they are the
        strings ``"nan"``, ``"inf"`` and ``"-inf"``, which ``float`` reads.
        """
        figures = {name: value if math.isfinite(value) else str(value) for name, value in self.figures.items()}
        return json.dumps({"stage": self.stage, "kind": self.kind, "step": self.step, **figures, "note": self.note})

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The record that :meth:`to_json` wrote.

        Raises:
            ValueError: for any other line.
        """
        try:
            fields: dict[str, Any] = json.loads(line)
            stage, kind, step, note = (fields.pop(name) for name in FIELDS)
            if kind in get_args(Kind) and type(step) is int and isinstance(stage, str) and isinstance(note, str):
                return cls(stage, kind, step, fields, note)
        except (ValueError, TypeError, KeyError, AttributeError):
            pass
        raise ValueError(f"not a record of metrics: {shown(line)}")


class Sink(Protocol):
    """Takes in the records of a run, stage after stage."""

    def start(self, stage: str, *, first_step: int, steps: int) -> None:
        """A stage begins, or goes on from a checkpoint.

        Args:
            stage: its name. A sink may drop what an earlier run, which was killed, measured in this stage after
                ``first_step``: it is measured again.
            first_step: optimizer steps that are done; 0 where the stage begins, of which nothing is kept then.
            steps: optimizer steps of the whole stage.
        """

    def write(self, record: Record) -> None:
        """Take in one record of a stage that was started."""

    def close(self) -> None:
        """The run is over, or stops here. May be called twice, and before any start."""


def read_records(path: Path) -> list[Record]:
    """The records of a file of JSON lines, in its order.

    A line counts once its newline is written, so what a kill cut short is passed over. Of several records of one kind
    at one step of a stage the last counts: a resumed run may repeat the evaluation that followed its checkpoint.

    Raises:
        ValueError: for any other line that is not a record, with file and line.
    """
    # Not splitlines, which knows more separators than the newline.
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records: dict[tuple[str, Kind, int], Record] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = Record.from_json(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        key = record.stage, record.kind, record.step
        records.pop(key, None)
        records[key] = record
    return list(records.values())
