"""Norms and rotation one after the other, as the model has them."""

from __future__ import annotations

from torch import Tensor

from kernelkit.ops.norms import Norm
from kernelkit.spec import Kernel, KernelSpec


def qk_norm_rope(
    query: Tensor, key: Tensor, q_norm: Norm, k_norm: Norm, rotary_pos_emb: Kernel, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """As in ``Qwen3Attention``."""
    rotated: tuple[Tensor, Tensor] = rotary_pos_emb(
        q_norm(query).transpose(1, 2), k_norm(key).transpose(1, 2), cos, sin
    )
    return rotated


SPECS = (
    KernelSpec(
        op="qk_norm_rope",
        variant="standard",
        name="eager",
        factory=f"{__name__}:qk_norm_rope",
        description="The reference: the model's norms and its rotation, with whatever kernels they are.",
    ),
)
