"""A residual added in plain PyTorch, and the norm that the model has."""

from __future__ import annotations

from torch import Tensor

from kernelkit.ops.norms import Norm
from kernelkit.spec import KernelSpec


def add_rms_norm(hidden_states: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """As in ``LlamaDecoderLayer``."""
    total = residual + hidden_states
    return total, norm(total)


SPECS = tuple(
    KernelSpec(
        op="add_rms_norm",
        variant=variant,
        name="eager",
        factory=f"{__name__}:add_rms_norm",
        description="The reference: an addition, then the model's norm with whatever kernel it holds.",
    )
    for variant in ("standard", "zero_centered", "fp32_weight")
)
