"""RMS normalisation in plain PyTorch, fused by ``torch.compile``."""

from __future__ import annotations

from kernelkit.kernels.compiled import compiled_specs
from kernelkit.kernels.rms_norm import eager

SPECS = compiled_specs(
    "rms_norm", {"standard": eager.standard, "zero_centered": eager.zero_centered, "fp32_weight": eager.fp32_weight}
)
