"""The experts on Triton's grouped products."""

from __future__ import annotations

from kernelkit.kernels.moe_experts.fused_kernels import fused
from kernelkit.kernels.moe_experts.triton_grouped_kernels import Grouped

moe_experts, gpt_oss = fused("triton", Grouped)
