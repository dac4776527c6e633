"""What the device can do at best, measured beside the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernelkit.bench.timing import timed
from kernelkit.spec import Cost


@dataclass(frozen=True)
class Floor:
    """Rates that no kernel is expected to beat.

    Attributes:
        bytes_per_second: of a plain copy, read and written bytes together; the faster of a memory copy and a kernel.
        flops_per_second: of one large product in the benchmark's dtype, random data.
    """

    bytes_per_second: float
    flops_per_second: float

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype) -> Floor:
        """Copy and multiply; much on a GPU, and little on a CPU."""
        size, side = (2**29, 8192) if device.type == "cuda" else (2**22, 256)
        source = torch.ones(size // 4, device=device)
        target = torch.empty_like(source)
        copies = (lambda: target.copy_(source)), (lambda: torch.neg(source, out=target))
        copying = min(timed([copy], device).ms for copy in copies)
        left, right = torch.randn(2, side, side, device=device).to(dtype)
        multiplying = timed([lambda: left @ right], device)
        return cls(2 * size / copying * 1000, 2 * side**3 / multiplying.ms * 1000)

    def ms(self, cost: Cost) -> float:
        """The least time for ``cost``: that of its memory or of its products, whichever is longer."""
        return 1000 * max(cost.bytes / self.bytes_per_second, cost.flops / self.flops_per_second)
