"""Rotary position embedding in plain PyTorch, fused by ``torch.compile``."""

from __future__ import annotations

from kernelkit.kernels.compiled import compiled_specs
from kernelkit.kernels.rotary_pos_emb import eager

SPECS = compiled_specs(
    "rotary_pos_emb", {"full": eager.full, "partial": eager.partial, "interleaved": eager.interleaved}
)
