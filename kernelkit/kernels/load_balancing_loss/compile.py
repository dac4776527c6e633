"""The load balancing loss in plain PyTorch, fused by ``torch.compile``."""

from __future__ import annotations

from kernelkit.kernels.compiled import HARDWARE, PROBE, CompileOptions, compiled
from kernelkit.kernels.load_balancing_loss import eager
from kernelkit.spec import Kernel, KernelSpec


def load_balancing_loss(options: CompileOptions) -> Kernel:
    """The eager kernel, compiled."""
    return compiled(eager.load_balancing_loss, options)


SPECS = (
    KernelSpec(
        op="load_balancing_loss",
        variant="standard",
        name="compile",
        factory=f"{__name__}:load_balancing_loss",
        hardware=HARDWARE,
        probe=PROBE,
        options=CompileOptions,
        description="The eager kernel through torch.compile.",
    ),
)
