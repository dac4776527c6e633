"""Gated activations in plain PyTorch, fused by ``torch.compile``."""

from __future__ import annotations

from kernelkit.kernels.compiled import compiled_specs
from kernelkit.kernels.swiglu_mlp import eager

SPECS = compiled_specs("swiglu_mlp", {"silu": eager.silu, "gelu_tanh": eager.gelu_tanh, "clamped": eager.clamped})
