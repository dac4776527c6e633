"""The experts in torch's grouped products, and what is between them fused by ``torch.compile``."""

from __future__ import annotations

from kernelkit.kernels.compiled import compiled_specs
from kernelkit.kernels.moe_experts import torch

# Of the eager kernel nothing could be compiled: it asks the device how many rows each expert has.
SPECS = compiled_specs("moe_experts", {"standard": torch.moe_experts, "gpt_oss": torch.gpt_oss}, of="torch")
