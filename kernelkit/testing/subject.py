"""A kernel on trial, with everything that the checks need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelkit.ops.comparison import Call
from kernelkit.registry import KernelRegistry
from kernelkit.spec import Kernel, KernelSpec, Op

DTYPES = ("float32", "bfloat16", "float16")


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
            LookupError: where its op has no eager kernel or no samples, so that it cannot be judged.
        """
        op, references = registry.op(spec.op), registry.list(spec.op, spec.variant, "eager")
        if not references or op.samples is None:
            raise LookupError("its op has no eager implementation, or no samples")
        kernel, eager = spec.build(), references[0].build()
        if op.on_samples is not None:
            kernel, eager = op.on_samples(kernel, spec.traits), op.on_samples(eager, references[0].traits)
        # Triton's interpreter computes nothing right in bfloat16, and rounds to float16 as a GPU does.
        accepted = [name for name in DTYPES if spec.dtypes is None or name in spec.dtypes]
        names = [name for name in accepted if not (interpreted and name == "bfloat16")]
        return cls(spec, op, kernel, eager, device, tuple(getattr(torch, name) for name in names))

    @property
    def low(self) -> torch.dtype:
        """The dtype of fewest bits in which it is judged."""
        return self.dtypes[1] if len(self.dtypes) > 1 else self.dtypes[0]

    def calls(self, dtype: torch.dtype | None = None) -> Iterator[Call]:
        """The sample calls of the op, fresh each time, in ``dtype`` or the lowest one."""
        generator = torch.Generator(self.device).manual_seed(0)
        assert self.op.samples is not None
        samples = self.op.samples(self.spec.variant, dtype or self.low, self.device, generator)
        calls = Call.of_samples(self.op, samples)
        served = [call for call in calls if not self._is_refused(call)]
        if not served:
            raise AssertionError("it refuses every sample of its op")
        yield from served

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


def strided(tensor: Tensor) -> Tensor:
    """The same values, every second in memory; what is between them is no number."""
    gap = torch.nan if tensor.is_floating_point() else 0
    return torch.stack((tensor, torch.full_like(tensor, gap)), dim=-1)[..., 0]


def transposed(tensor: Tensor) -> Tensor:
    """The same values, first dimension innermost in memory."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.ndim > 1 else tensor
