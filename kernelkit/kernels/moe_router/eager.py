"""The choice of experts in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernelkit.spec import KernelSpec


def moe_router(router_logits: Tensor, top_k: int, norm_topk_prob: bool) -> tuple[Tensor, Tensor]:
    """As ``Qwen3MoeTopKRouter``; the choice is by the logits, of which none is lost where a probability is zero."""
    dtype = torch.promote_types(router_logits.dtype, torch.float32)
    probabilities = F.softmax(router_logits, dtype=dtype, dim=-1)
    index = router_logits.topk(top_k, dim=-1).indices
    weights = probabilities.gather(-1, index)
    if norm_topk_prob:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.to(router_logits.dtype), index


SPECS = (
    KernelSpec(
        op="moe_router",
        variant="standard",
        name="eager",
        factory=f"{__name__}:moe_router",
        description="The reference, step by step as transformers computes it.",
    ),
)
