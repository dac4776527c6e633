"""What a run would be: its kernels, its sizes, and the memory that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kernelkit.distill.memory import Memory, predict
from kernelkit.distill.model_plan import ModelPlan
from kernelkit.distill.plan import Plan
from kernelkit.models.report import KernelReport, kernel_report


@dataclass(frozen=True)
class DryRun:
    """A run that was looked at and not begun.

    Attributes:
        plan: the run, checked.
        teacher, student: the kernels of each.
        sizes: number of parameters of each, of the teacher first.
        memory: predicted, of each rank; None where it cannot be predicted.
        obstacle: why not.
    """

    plan: Plan
    teacher: KernelReport
    student: KernelReport
    sizes: tuple[int, int]
    memory: Memory | None
    obstacle: str = ""

    @classmethod
    def of(cls, plan: Plan) -> DryRun:
        """Look at ``plan`` without loading a weight."""
        outlines = [plan.teacher.outline(), plan.student.outline()]
        sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in outlines]
        teacher, student = map(kernel_report, outlines)
        try:
            memory, obstacle = predict(plan), ""
        # Kernels of another machine may not import, and meta tensors cannot take every step.
        except Exception as error:
            memory, obstacle = None, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return cls(plan, teacher, student, (sizes[0], sizes[1]), memory, obstacle)

    def facts(self) -> Iterator[tuple[str, str]]:
        """What there is to know, by name, for a table of two columns."""
        config, ranks = self.plan.config, self.plan.ranks.world_size
        for name, model, size in zip(
            ("teacher", "student"), (self.plan.teacher, self.plan.student), self.sizes, strict=True
        ):
            yield (
                name,
                f"{size:,} parameters, {_weights_of(model)}, {model.section.dtype} on {model.device}"
                + (", compiled" if model.section.compile else ""),
            )
        data = config.data
        micro = data.rows_per_forward(ranks)
        yield (
            "tokens per step",
            (
                f"{data.batch_size * data.seq_len:,}: {data.batch_size} rows of {data.seq_len} over {ranks} "
                f"rank{'s' * (ranks != 1)}, {data.rows_per_rank(ranks) // micro} x {micro} rows on each"
            ),
        )
        yield "steps", f"{config.train.steps:,}" + (", then as many of the control" if config.train.control else "")
        yield "peak memory per rank", self._predicted()

    def _predicted(self) -> str:
        if self.memory is None:
            return f"not predicted: {self.obstacle}"
        gib = [size / 2**30 for size in (self.memory.peak, self.memory.weights, self.memory.optimizer)]
        many = " (estimated for several ranks)" if self.plan.ranks.world_size > 1 else ""
        return f"{gib[0]:.2f} GiB predicted{many}; of a single process, {gib[1]:.2f} weights and {gib[2]:.2f} optimizer"


def _weights_of(model: ModelPlan) -> str:
    return f"from {model.section.path}" if model.section.path else "new weights"
