"""A kernel on trial, with everything that the checks need."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernelkit.ops.comparison import Call, Outcome, deviations, run
from kernelkit.registry import KernelRegistry
from kernelkit.spec import Kernel, KernelSpec, Op, Samples

DTYPES = ("float32", "bfloat16", "float16")


class NotMadeError(Exception):
    """A check is not made of this kernel, and the message says why."""


class LeftOut(str):
    """What a check could not judge, and why. It is no fault of the kernel."""

    __slots__ = ()


@dataclass(frozen=True, eq=False)
class Subject:
    """One kernel on one device.

    Attributes:
        spec: what it says of itself.
        op: its contract.
        kernel, eager: the kernel, and the reference of its op and variant; as the op's samples call them.
        device: where it is called.
        dtypes: those in which it is judged.
    """

    spec: KernelSpec
    op: Op
    kernel: Kernel
    eager: Kernel
    device: torch.device
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, spec: KernelSpec, device: torch.device, registry: KernelRegistry, *, interpreted: bool) -> Subject:
        """The kernel, built with its default options.

        Raises:
            LookupError: where its op has no eager kernel or no samples, or it takes no dtype in which it is judged.
        """
        op, references = registry.op(spec.op), registry.list(spec.op, spec.variant, "eager")
        if not references or op.samples is None:
            raise LookupError("its op has no eager implementation, or no samples")
        # Triton's interpreter computes nothing right in bfloat16, and rounds to float16 as a GPU does.
        accepted = [name for name in DTYPES if spec.dtypes is None or name in spec.dtypes]
        names = [name for name in accepted if not (interpreted and name == "bfloat16")]
        if not names:
            raise LookupError(f"takes {' or '.join(spec.dtypes or ())}, in which nothing is judged here")
        kernel, eager = spec.build(), references[0].build()
        if op.on_samples is not None:
            kernel, eager = op.on_samples(kernel, spec.traits), op.on_samples(eager, references[0].traits)
        return cls(spec, op, kernel, eager, device, tuple(getattr(torch, name) for name in names))

    @property
    def low(self) -> torch.dtype:
        """The dtype of fewest bits in which it is judged."""
        return self.dtypes[1] if len(self.dtypes) > 1 else self.dtypes[0]

    @property
    def outermost(self) -> tuple[torch.dtype, ...]:
        """The dtype of most bits and that of fewest: what the one rounds away, the other shows."""
        return tuple(dict.fromkeys((self.dtypes[0], self.low)))

    @property
    def trained(self) -> bool:
        """Whether it has a backward, which is judged too."""
        return not self.spec.inference_only

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of what its op takes."""
        return tuple(inspect.signature(self.op.protocol.__call__).parameters)

    def calls(self, dtype: torch.dtype | None = None) -> Iterator[Call]:
        """The sample calls of the op, fresh each time, in ``dtype`` or the lowest one."""
        assert self.op.samples is not None
        served = self._served(self.op.samples(self.spec.variant, *self._where(dtype or self.low)))
        if not served:
            raise AssertionError("it refuses every sample of its op")
        yield from served

    def long_calls(self, dtype: torch.dtype) -> list[Call]:
        """Calls with rows longer than a block of most kernels, few on a CPU and more on a GPU."""
        if self.op.sized_samples is None or not self.op.long_rows:
            raise NotMadeError("its op states no long rows")
        sizes = {**self.op.long_rows, "batch": 1 if self.device.type == "cpu" else 64}
        return self._served(self.op.sized_samples(self.spec.variant, sizes, *self._where(dtype)))

    def _where(self, dtype: torch.dtype) -> tuple[torch.dtype, torch.device, torch.Generator]:
        return dtype, self.device, torch.Generator(self.device).manual_seed(0)

    def _served(self, samples: Samples) -> list[Call]:
        return [call for call in Call.of_samples(self.op, samples) if not self._is_refused(call)]

    def _is_refused(self, call: Call) -> bool:
        """Whether the kernel says in so many words that it does not compute this, which is its right."""
        try:
            with torch.no_grad():
                call(self.kernel)
        except ValueError as error:
            return str(error).startswith(f"{self.op.name}: {self.spec.name} ")
        except Exception:  # anything else is a fault, and the check that meets it says so
            return False
        return False

    def run(self, call: Call, kernel: Kernel | None = None) -> Outcome:
        """What the kernel gives, or another in its place; with gradients where it is trained."""
        return run(kernel or self.kernel, call, backward=self.trained)

    def worse(
        self, call: Call, change: Callable[[Tensor], Tensor] = lambda tensor: tensor, **how: Any
    ) -> Iterator[str]:
        """Where the kernel is worse than eager in one call, a sentence each."""
        for found in deviations(self.kernel, self.eager, call, change=change, **{"backward": self.trained, **how}):
            yield f"{found}, {call.shapes()}"
