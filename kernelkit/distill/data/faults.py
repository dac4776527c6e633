"""What is wrong in a file of records, without a million lines of it."""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN = 5


@dataclass
class Faults:
    """The first few faults of one file, and the number of all.

    Attributes:
        path: the file.
        unit: what a number counts: ``line`` or ``row``.
    """

    path: str
    unit: str
    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, number: int, fault: str) -> None:
        """Note that the record with this ``number`` is faulty."""
        self.count += 1
        if self.count <= SHOWN:
            self.shown.append(f"{place(self.path, self.unit, number)}: {fault}")

    def sentences(self) -> list[str]:
        """One sentence for each fault; for the last ones, one for all."""
        rest = self.count - len(self.shown)
        return [*self.shown, f"{self.path}: {rest} more such {self.unit}{'s' * (rest > 1)}"] if rest else self.shown


def place(path: str, unit: str, number: int) -> str:
    """``"chats.jsonl:17"``, or ``"chats row 16"`` in a data set."""
    return f"{path}:{number}" if unit == "line" else f"{path} {unit} {number}"
