"""The sparse feed-forward block: a router and its experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from kernelkit.containers.bindings import Bindings
from kernelkit.models.layers.kernel_module import KernelModule
from kernelkit.spec import Kernel


class TopKRouter(KernelModule):
    """Chooses experts by a softmax in float32, as ``Qwen3MoeTopKRouter``."""

    moe_router: Kernel

    def __init__(self, config: PreTrainedConfig, kernels: Bindings) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))
        self.bind(kernels, "moe_router")

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Route ``hidden_states`` [T, H].

        Returns:
            Router logits [T, E], weights [T, K] in the dtype of the logits, and expert indices [T, K].
        """
        logits = F.linear(hidden_states, self.weight)
        return logits, *self.moe_router(logits, self.top_k, self.norm_topk_prob)


class Experts(KernelModule):
    """The experts' weights in two tensors, as ``Qwen3MoeExperts``."""

    moe_experts: Kernel

    def __init__(self, config: PreTrainedConfig, kernels: Bindings) -> None:
        super().__init__()
        if config.hidden_act not in ("silu", "swish"):
            raise ValueError(f"hidden_act={config.hidden_act!r} has no moe_experts variant; supported: silu")
        experts, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))
        self.bind(kernels, "moe_experts")

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Map [T, H] to [T, H] through the chosen experts."""
        return self.moe_experts(hidden_states, top_k_index, top_k_weights, self.gate_up_proj, self.down_proj)


class SparseMoeBlock(nn.Module):
    """Routes each token through its experts, as ``Qwen3MoeSparseMoeBlock``."""

    def __init__(self, config: PreTrainedConfig, kernels: Bindings) -> None:
        super().__init__()
        self.experts = Experts(config, kernels)
        self.gate = TopKRouter(config, kernels)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, S, H].

        Returns:
            [B, S, H], and the router logits [B * S, E] for the load balancing loss.
        """
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        router_logits, weights, index = self.gate(tokens)
        return self.experts(tokens, index, weights).view_as(hidden_states), router_logits
