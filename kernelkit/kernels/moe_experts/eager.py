"""The experts in plain PyTorch, one after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kernelkit.kernels.swiglu_mlp.eager import ALPHA, LIMIT
from kernelkit.spec import KernelSpec


def moe_experts(
    hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """As ``Qwen3MoeExperts``: a loop over the experts that were chosen."""

    def expert(states: Tensor, number: int) -> Tensor:
        return expert_mlp(states, gate_up_proj[number], down_proj[number])

    return _over_the_chosen(expert, len(down_proj), hidden_states, top_k_index, top_k_weights)


def gpt_oss(
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    gate_up_proj_bias: Tensor,
    down_proj_bias: Tensor,
    alpha: float = ALPHA,
    limit: float = LIMIT,
) -> Tensor:
    """As ``GptOssExperts``: the same loop."""

    def expert(states: Tensor, number: int) -> Tensor:
        gate_up = states @ gate_up_proj[number] + gate_up_proj_bias[number]
        return clamped_gate(gate_up, alpha, limit) @ down_proj[number] + down_proj_bias[number]

    return _over_the_chosen(expert, len(down_proj), hidden_states, top_k_index, top_k_weights)


def _over_the_chosen(
    expert: Callable[[Tensor, int], Tensor], experts: int, hidden_states: Tensor, index: Tensor, weights: Tensor
) -> Tensor:
    output = torch.zeros_like(hidden_states)
    chosen = [number for number in torch.unique(index).tolist() if number < experts]
    # Where no expert is chosen one runs on no token, so that every gradient exists and is zero.
    for number in chosen or [0]:
        choice, token = torch.where(index.t() == number)
        states = expert(hidden_states[token], number) * weights[token, choice, None]
        output.index_add_(0, token, states.to(output.dtype))
    return output


def expert_mlp(hidden_states: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """One expert: [N, H] by [2I, H] and [H, I] to [N, H]."""
    gate, up = F.linear(hidden_states, gate_up_proj).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down_proj)


def clamped_gate(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """As ``GptOssExperts._apply_gate``: [N, 2I], gate and up in turns, to [N, I]."""
    gate, up = gate_up[..., ::2].clamp(max=limit), gate_up[..., 1::2].clamp(min=-limit, max=limit)
    return (up + 1) * (gate * torch.sigmoid(gate * alpha))


SPECS = tuple(
    KernelSpec(
        op="moe_experts",
        variant=variant,
        name="eager",
        factory=f"{__name__}:{function}",
        # The loop's length and shapes depend on the routing.
        traceable=False,
        description="The reference: a loop over the experts that were chosen.",
    )
    for variant, function in (("standard", "moe_experts"), ("gpt_oss", "gpt_oss"))
)
