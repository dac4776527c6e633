"""Language-model head and cross-entropy in plain PyTorch, fused by ``torch.compile``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kernelkit.kernels.compiled import HARDWARE, PROBE, CompileOptions, compiled
from kernelkit.kernels.cross_entropy_loss import eager
from kernelkit.spec import Kernel, KernelSpec


def cross_entropy_loss(options: CompileOptions) -> Kernel:
    """The eager kernel, compiled; it returns logits only where they are asked for."""
    return compiled(_cross_entropy_loss, options)


def _cross_entropy_loss(
    hidden_states: Tensor, weight: Tensor, labels: Tensor, *, return_logits: bool = False, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    loss, logits = eager.cross_entropy_loss(hidden_states, weight, labels, **settings)
    return loss, logits if return_logits else None


SPECS = (
    KernelSpec(
        op="cross_entropy_loss",
        variant="standard",
        name="compile",
        factory=f"{__name__}:cross_entropy_loss",
        hardware=HARDWARE,
        probe=PROBE,
        options=CompileOptions,
        description="The eager kernel through torch.compile: the logits are kept, in the dtype of the hidden states.",
    ),
)
