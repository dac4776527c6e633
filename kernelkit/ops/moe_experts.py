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
    - ``gpt_oss``: x @ gate_up[e] + gate_up_bias[e] holds gate and up in turns; with gate clamped to at most ``limit``
      and up to ``limit`` both ways, (gate * sigmoid(alpha * gate) * (up + 1)) @ down[e] + down_bias[e]
    """

    def __call__(
        self,
        hidden_states: Tensor,
        top_k_index: Tensor,
        top_k_weights: Tensor,
        gate_up_proj: Tensor,
        down_proj: Tensor,
        gate_up_proj_bias: Tensor | None = None,
        down_proj_bias: Tensor | None = None,
        alpha: float = 1.702,
        limit: float = 7.0,
    ) -> Tensor:
        """Apply the experts to ``hidden_states`` [T, H].

        Args:
            hidden_states: [T, H], T may be zero.
            top_k_index: [T, K] int64, the experts of each token. An index equal to E is a sentinel: that choice adds
                nothing (expert parallelism marks other ranks' experts so).
            top_k_weights: [T, K], the weight of each choice; differentiable.
            gate_up_proj: [E, 2I, H]; gpt_oss: [E, H, 2I]. An expert may have no token; its gradient is then zero.
            down_proj: [E, H, I]; gpt_oss: [E, I, H].
            gate_up_proj_bias: [E, 2I]; for gpt_oss alone, as the following.
            down_proj_bias: [E, H].
            alpha, limit: ``swiglu_alpha`` and ``swiglu_limit`` of the config.

        Returns:
            [T, H], in the dtype of ``hidden_states``.
        """


def samples(variant: str, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Samples:
    """Experts without tokens and with all of them, sentinels, nothing else, no tokens, as many choices as experts."""
    for tokens, hidden, width, experts, top_k, crowd in (
        (7, 32, 16, 4, 2, "spread"),
        (5, 16, 32, 8, 1, "one"),
        (9, 32, 16, 4, 4, "sentinel"),
        (0, 16, 16, 4, 2, "spread"),
        (6, 16, 16, 8, 8, "spread"),
        (3, 16, 16, 4, 2, "nowhere"),
    ):
        states, index, *others = _call(variant, tokens, hidden, width, experts, top_k, dtype, device, generator)
        if crowd == "one":
            index = torch.zeros_like(index)
        elif crowd == "sentinel":
            index = torch.where(index >= experts // 2, experts, index)
        elif crowd == "nowhere":
            index = torch.full_like(index, experts)
        yield (states, index, *others), {}


def sized_samples(
    variant: str, sizes: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Samples:
    """64 tokens of ``hidden_size``, each to ``top_k`` of ``experts`` of ``intermediate_size``.

    All experts are as likely; with a ``routing`` of zipf expert n is so in proportion to 1 / n.
    """
    hidden, width, experts, top_k = (sizes[name] for name in ("hidden_size", "intermediate_size", "experts", "top_k"))
    count = math.prod(rows(sizes))
    states, index, *others = _call(variant, count, hidden, width, experts, top_k, dtype, device, generator)
    if sizes.get("routing") == "zipf":
        odds = 1 / torch.arange(1, experts + 1, dtype=torch.float32, device=device)
        index = torch.multinomial(odds.expand(count, -1), top_k, generator=generator)
    yield (states, index, *others), {}


def _call(
    variant: str,
    tokens: int,
    hidden: int,
    width: int,
    experts: int,
    top_k: int,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Any, ...]:
    def some(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, device=device) * scale).to(dtype)

    weights, index = torch.rand(tokens, experts, generator=generator, device=device).topk(top_k, dim=-1)
    routed = some(tokens, hidden), index, weights.to(dtype)
    if variant == "standard":
        # So small that tokens a hundred times larger do not overflow in float16.
        up = some(experts, 2 * width, hidden, scale=0.5 * hidden**-0.5)
        return *routed, up, some(experts, hidden, width, scale=width**-0.5)
    up = some(experts, hidden, 2 * width, scale=0.2 * hidden**-0.5)
    down = some(experts, width, hidden, scale=width**-0.5)
    # A third of the values are far beyond the limit, and the others far within: none is there only as it is rounded.
    beyond = torch.randint(-1, 2, (experts, 2 * width), generator=generator, device=device).to(dtype)
    return *routed, up, down, 6 * beyond + some(experts, 2 * width, scale=0.2), some(experts, hidden), 1.5, 1.5


def cost(arguments: Mapping[str, Any], backward: bool) -> Cost:
    """Each choice of a token is multiplied by three matrices [I, H]; backward makes two such products for each.

    Forward reads weights and tokens and writes tokens; backward reads the same and a gradient, and writes gradients.
    """
    tokens, weights = arguments["hidden_states"], (arguments["gate_up_proj"], arguments["down_proj"])
    flops = 2 * arguments["top_k_index"].numel() * sum(weight[0].numel() for weight in weights)
    moved = (5 if backward else 2) * memory(tokens) + (3 if backward else 1) * memory(*weights)
    return Cost(moved, (3 if backward else 1) * flops)


_QWEN3_30B = {"hidden_size": 2048, "intermediate_size": 768, "experts": 128, "top_k": 8}

OP = Op(
    name="moe_experts",
    variants={
        "standard": "transformers Qwen3MoeExperts, MixtralExperts",
        "gpt_oss": "transformers GptOssExperts",
    },
    protocol=MoEExperts,
    default="torch",
    preference=("triton", "torch", "liger", "eager"),
    samples=samples,
    sized_samples=sized_samples,
    long_rows={"length": 150, "hidden_size": 136, "intermediate_size": 152, "experts": 5, "top_k": 2},
    cost=cost,
    benchmarks=(
        {"batch": 4, "length": 4096, **_QWEN3_30B},
        {"batch": 4, "length": 4096, "hidden_size": 4096, "intermediate_size": 1536, "experts": 64, "top_k": 4},
        {"batch": 1, "length": 512, **_QWEN3_30B},
        {"batch": 4, "length": 4096, **_QWEN3_30B, "routing": "zipf"},
    ),
)
