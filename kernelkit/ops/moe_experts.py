"""The experts of a sparse mixture, after routing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from kernelkit.ops.cost import memory, rows
from kernelkit.spec import Cost, Op, Samples


class MoEExperts(Protocol):
    """Send each token through its top-k experts and add up their weighted outputs (Shazeer et al., arXiv:1701.06538).

    - ``standard``: for expert e, down[e] @ (silu(gate) * up), where gate_up[e] @ x = (gate, up), gate first
    """

    def __call__(
        self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
    ) -> Tensor:
        """Apply the experts to ``hidden_states`` [T, H].

        Args:
            hidden_states: [T, H], T may be zero.
            top_k_index: [T, K] int64, the experts of each token. An index equal to E is a sentinel: that choice adds
                nothing (expert parallelism marks other ranks' experts so).
            top_k_weights: [T, K], the weight of each choice; differentiable.
            gate_up_proj: [E, 2I, H]. An expert may have no token; its gradient is then zero.
            down_proj: [E, H, I].

        Returns:
            [T, H], in the dtype of ``hidden_states``.
        """


def samples(variant: str, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Samples:
    """Few and many experts, an expert without tokens, all tokens on one expert, sentinels, and no tokens."""
    for tokens, hidden, width, experts, top_k, crowd in (
        (7, 32, 16, 4, 2, "spread"),
        (5, 16, 32, 8, 1, "one"),
        (9, 32, 16, 4, 4, "sentinel"),
        (0, 16, 16, 4, 2, "spread"),
    ):
        states, index, *others = _call(tokens, hidden, width, experts, top_k, dtype, device, generator)
        if crowd == "one":
            index = torch.zeros_like(index)
        elif crowd == "sentinel":
            index = torch.where(index >= experts // 2, experts, index)
        yield (states, index, *others), {}


def sized_samples(
    variant: str, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Samples:
    """64 tokens of ``hidden_size``, each to ``top_k`` of ``experts`` of ``intermediate_size``."""
    hidden, width = sizes["hidden_size"], sizes["intermediate_size"]
    yield _call(math.prod(rows(sizes)), hidden, width, sizes["experts"], sizes["top_k"], dtype, device, generator), {}


def _call(
    tokens: int,
    hidden: int,
    width: int,
    experts: int,
    top_k: int,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Tensor, ...]:
    weights, index = torch.rand(tokens, experts, generator=generator, device=device).topk(top_k, dim=-1)
    return (
        torch.randn(tokens, hidden, generator=generator, device=device).to(dtype),
        index,
        weights.to(dtype),
        (torch.randn(experts, 2 * width, hidden, generator=generator, device=device) * hidden**-0.5).to(dtype),
        (torch.randn(experts, hidden, width, generator=generator, device=device) * width**-0.5).to(dtype),
    )


def cost(arguments: Mapping[str, Any], backward: bool) -> Cost:
    """Each choice of a token is multiplied by three matrices [I, H]; backward makes two such products for each.

    Forward reads weights and tokens and writes tokens; backward reads the same and a gradient, and writes gradients.
    """
    tokens, weights = arguments["hidden_states"], (arguments["gate_up_proj"], arguments["down_proj"])
    flops = 2 * arguments["top_k_index"].numel() * sum(weight[0].numel() for weight in weights)
    moved = (5 if backward else 2) * memory(tokens) + (3 if backward else 1) * memory(*weights)
    return Cost(moved, (3 if backward else 1) * flops)


OP = Op(
    name="moe_experts",
    variants={"standard": "transformers Qwen3MoeExperts, MixtralExperts"},
    protocol=MoEExperts,
    default="torch",
    preference=("torch", "liger", "eager"),
    samples=samples,
    sized_samples=sized_samples,
    cost=cost,
    benchmarks=(
        {"batch": 4, "length": 4096, "hidden_size": 2048, "intermediate_size": 768, "experts": 128, "top_k": 8},
        {"batch": 4, "length": 4096, "hidden_size": 4096, "intermediate_size": 1536, "experts": 64, "top_k": 4},
    ),
)
