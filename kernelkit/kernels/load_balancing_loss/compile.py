"""The load balancing loss in plain PyTorch, fused by ``torch.compile``."""

from __future__ import annotations

from kernelkit.kernels.compiled import compiled_specs
from kernelkit.kernels.load_balancing_loss import eager

SPECS = compiled_specs("load_balancing_loss", {"standard": eager.load_balancing_loss})
