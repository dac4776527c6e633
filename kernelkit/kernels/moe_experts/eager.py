"""The experts in plain PyTorch, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernelkit.spec import KernelSpec


def moe_experts(
    hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """As ``Qwen3MoeExperts``: a loop over the experts that were chosen."""
    output = torch.zeros_like(hidden_states)
    chosen = [expert for expert in torch.unique(top_k_index).tolist() if expert < gate_up_proj.shape[0]]
    # Where no expert is chosen one runs on no token, so that every gradient exists and is zero.
    for expert in chosen or [0]:
        choice, token = torch.where(top_k_index.t() == expert)
        states = expert_mlp(hidden_states[token], gate_up_proj[expert], down_proj[expert])
        states = states * top_k_weights[token, choice, None]
        output.index_add_(0, token, states.to(output.dtype))
    return output


def expert_mlp(hidden_states: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """One expert: [N, H] by [2I, H] and [H, I] to [N, H]."""
    gate, up = F.linear(hidden_states, gate_up_proj).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down_proj)


SPECS = (
    KernelSpec(
        op="moe_experts",
        variant="standard",
        name="eager",
        factory=f"{__name__}:moe_experts",
        # The loop's length and shapes depend on the routing.
        traceable=False,
        description="The reference: a loop over the experts that were chosen.",
    ),
)
