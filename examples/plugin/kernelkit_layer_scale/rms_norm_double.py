"""rms_norm with its mean square in float64, to see what the float32 of the others costs."""

from __future__ import annotations

import torch
from torch import Tensor

from kernelkit import KernelSpec


def rms_norm(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The variant ``standard`` of :class:`kernelkit.ops.rms_norm.RMSNorm`."""
    wide = hidden_states.to(torch.float64)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(hidden_states.dtype)


SPECS = [
    KernelSpec(
        op="rms_norm",
        variant="standard",
        name="double",
        factory="kernelkit_layer_scale.rms_norm_double:rms_norm",
        description="PyTorch in float64.",
    )
]
