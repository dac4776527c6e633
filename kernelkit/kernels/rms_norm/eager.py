"""RMS normalisation in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from kernelkit.kernels.dtypes import at_least_float32
from kernelkit.spec import KernelSpec


def standard(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As ``LlamaRMSNorm``: rounded to the input's dtype before the weight."""
    return weight * _normalised(hidden_states, eps).to(hidden_states.dtype)


def zero_centered(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As ``Gemma3RMSNorm``: 1 + weight, in float32, rounded once."""
    return (_normalised(hidden_states, eps) * (1.0 + at_least_float32(weight))).type_as(hidden_states)


def fp32_weight(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As ``GptOssRMSNorm``: the weight in float32, rounded once."""
    return (weight * _normalised(hidden_states, eps)).to(hidden_states.dtype)


def _normalised(hidden_states: Tensor, eps: float) -> Tensor:
    hidden_states = at_least_float32(hidden_states)
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    return hidden_states * torch.rsqrt(variance + eps)


SPECS = tuple(
    KernelSpec(
        op="rms_norm",
        variant=variant,
        name="eager",
        factory=f"{__name__}:{variant}",
        description="The reference, step by step as transformers computes it.",
    )
    for variant in ("standard", "zero_centered", "fp32_weight")
)
