"""Where the records of a run go: a file, TensorBoard, the terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from kernelkit.distill.atomic import replace_text
from kernelkit.distill.extras import extra
from kernelkit.distill.metrics import Record, Sink, read_records


class FanOut:
    """Several sinks as one."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = tuple(sinks)

    def start(self, stage: str, *, first_step: int, steps: int) -> None:
        """Start the stage in each of them."""
        for sink in self.sinks:
            sink.start(stage, first_step=first_step, steps=steps)

    def write(self, record: Record) -> None:
        """Write the record to each of them."""
        for sink in self.sinks:
            sink.write(record)

    def close(self) -> None:
        """Close all of them, also where one fails."""
        with ExitStack() as stack:
            for sink in self.sinks:
                stack.callback(sink.close)


class JsonLines:
    """A file with one record in each line; :func:`~kernelkit.distill.metrics.read_records` reads it, also after a kill.

    Starting a stage writes the file anew without the later records of this stage, and puts it in place of the old one.

    Args:
        path: the file. Its folder is made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None

    def start(self, stage: str, *, first_step: int, steps: int) -> None:
        """Drop later records of this stage, and a last line that was cut short."""
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        records = read_records(self.path) if self.path.exists() else []
        kept = [record for record in records if record.stage != stage or (first_step and record.step <= first_step)]
        replace_text(self.path, "".join(f"{record.to_json()}\n" for record in kept))
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append a line, and hand it to the operating system."""
        if self._file is None:
            raise RuntimeError(f"{self.path}: no stage was started")
        self._file.write(f"{record.to_json()}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorBoard:
    """Event files, in a folder for each stage, so that TensorBoard lays the curves of the stages over one another.

    A stage is a run there, and ``train/loss`` or ``eval/kl`` are its tags.

    Args:
        folder: holds the folders of the stages.

    Raises:
        ImportError: if tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._module = extra("torch.utils.tensorboard")
        self._writers: dict[str, Any] = {}

    def start(self, stage: str, *, first_step: int, steps: int) -> None:
        """Write on in a new event file, which hides what older ones have of later steps."""
        if stage in self._writers:
            self._writers[stage].close()
        # Steps from this one on are hidden. Where the stage begins that includes the evaluation at step 0.
        purge_step = first_step + 1 if first_step else 0
        self._writers[stage] = self._module.SummaryWriter(str(self.folder / stage), purge_step=purge_step)

    def write(self, record: Record) -> None:
        """Add each figure as a scalar."""
        if record.stage not in self._writers:
            raise RuntimeError(f"{self.folder}: stage {record.stage!r} was not started")
        writer = self._writers[record.stage]
        for name, value in record.figures.items():
            writer.add_scalar(f"{record.kind}/{name}", value, record.step)
        writer.flush()

    def close(self) -> None:
        """Close the event files."""
        while self._writers:
            self._writers.popitem()[1].close()


class ProgressBar:
    """A bar for each stage, with the time that is left, loss and speed; evaluations are printed above it.

    Where nobody watches (a file, a job's log), the first record and one for every tenth of the steps are lines.

    Args:
        console: where to; standard output if None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bars: Progress | None = None
        self._task = TaskID(0)
        self._stage, self._first_step, self._steps = "", 0, 0
        self._began, self._tenth = 0.0, 0

    def start(self, stage: str, *, first_step: int, steps: int) -> None:
        """Add a bar, or begin to count."""
        self._stage, self._first_step, self._steps = stage, first_step, steps
        # One tenth earlier, so that the first record is a sign of life.
        self._began, self._tenth = time.monotonic(), first_step * 10 // max(steps, 1) - 1
        if self.console.is_terminal:
            self._bars = self._bars or _bars(self.console)
            self._bars.start()
            self._task = self._bars.add_task(stage, total=steps, completed=first_step, figures="")

    def write(self, record: Record) -> None:
        """Move the bar, or print a line if it is due."""
        tenth = record.step * 10 // max(self._steps, 1)
        if record.kind == "eval":
            self._print(f"{record.stage}  step {record.step}  {_evaluation(record)}")
        elif self._bars is not None:
            self._bars.update(self._task, completed=record.step, figures=_training(record))
        elif tenth > self._tenth:
            self._tenth = tenth
            self._print(f"{record.stage}  {record.step}/{self._steps}  {self._left(record.step)}  {_training(record)}")

    def close(self) -> None:
        """Leave the bars as they are."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _left(self, step: int) -> str:
        seconds = (time.monotonic() - self._began) / max(step - self._first_step, 1) * (self._steps - step)
        return f"{timedelta(seconds=round(seconds))} left"

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        console=console,
    )


def _training(record: Record) -> str:
    """``"loss 2.1034  52,103 tokens/s"``, as far as it was measured."""
    loss, speed = record.figures.get("loss"), record.figures.get("tokens_per_second")
    parts = [loss is not None and f"loss {loss:.4f}", speed is not None and f"{speed:,.0f} tokens/s"]
    return "  ".join(part for part in parts if part)


def _evaluation(record: Record) -> str:
    """``"validation: cross_entropy 2.1034  kl 0.1520"``."""
    return f"validation: {'  '.join(f'{name} {value:.4f}' for name, value in record.figures.items())}"
