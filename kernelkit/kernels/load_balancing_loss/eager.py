"""The load balancing loss in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernelkit.kernels.dtypes import at_least_float32
from kernelkit.spec import KernelSpec


def load_balancing_loss(
    router_logits: tuple[Tensor, ...], num_experts: int, top_k: int, attention_mask: Tensor | None = None
) -> Tensor:
    """As ``load_balancing_loss_func`` of qwen3_moe: counts and probabilities are summed layer by layer."""
    device = router_logits[0].device
    dtype = torch.promote_types(router_logits[0].dtype, torch.float32)
    counts = torch.zeros(num_experts, dtype=dtype, device=device)
    probabilities = torch.zeros(num_experts, dtype=dtype, device=device)
    rows: float | Tensor = 0.0
    weights = None if attention_mask is None else attention_mask.reshape(-1, 1).to(device, dtype)

    for logits in router_logits:
        routing = F.softmax(logits.to(device), dim=-1)
        chosen = torch.topk(routing, top_k, dim=-1).indices
        routing = at_least_float32(routing)
        if weights is None:
            counts = counts + _count(chosen, torch.ones_like(routing[:, :1]), num_experts)
            probabilities = probabilities + routing.sum(dim=0)
            rows = rows + routing.shape[0]
        else:
            counts = counts + _count(chosen, weights, num_experts)
            probabilities = probabilities + (routing * weights).sum(dim=0)
            rows = rows + weights.sum()
    return torch.sum((counts / rows) * (probabilities / rows)) * num_experts


def _count(chosen: Tensor, weights: Tensor, num_experts: int) -> Tensor:
    """How often each expert was chosen. Whole numbers in float32, so that the order of addition does not matter."""
    empty = weights.new_zeros(num_experts)
    return empty.scatter_add(0, chosen.reshape(-1), weights.expand_as(chosen).reshape(-1))


SPECS = (
    KernelSpec(
        op="load_balancing_loss",
        variant="standard",
        name="eager",
        factory=f"{__name__}:load_balancing_loss",
        description="The reference, step by step as transformers computes it.",
    ),
)
