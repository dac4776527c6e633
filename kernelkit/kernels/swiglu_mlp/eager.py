"""Gated activations in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernelkit.spec import KernelSpec

LIMIT, ALPHA = 7.0, 1.702
"""``swiglu_limit`` and ``swiglu_alpha`` of gpt-oss."""


def silu(gate: Tensor, up: Tensor) -> Tensor:
    """As in ``LlamaMLP``."""
    return F.silu(gate) * up


def gelu_tanh(gate: Tensor, up: Tensor) -> Tensor:
    """As in ``Gemma3MLP``."""
    return F.gelu(gate, approximate="tanh") * up


def clamped(gate: Tensor, up: Tensor) -> Tensor:
    """As ``GptOssExperts._apply_gate``."""
    gate, up = gate.clamp(max=LIMIT), up.clamp(min=-LIMIT, max=LIMIT)
    return (up + 1) * (gate * torch.sigmoid(gate * ALPHA))


SPECS = tuple(
    KernelSpec(
        op="swiglu_mlp",
        variant=variant,
        name="eager",
        factory=f"{__name__}:{variant}",
        description="The reference, step by step as transformers computes it.",
    )
    for variant in ("silu", "gelu_tanh", "clamped")
)
