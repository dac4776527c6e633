"""The auxiliary loss that spreads tokens over experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from kernelkit.ops.cost import memory, rows
from kernelkit.spec import Cost, Op, Samples


class LoadBalancingLoss(Protocol):
    """E * sum_e f_e p_e: the share of choices that fall on an expert times its mean router probability.

    Equations (4) to (6) of Fedus et al., arXiv:2101.03961, over the rows of all layers together. f sums to K.
    """

    def __call__(
        self, router_logits: tuple[Tensor, ...], num_experts: int, top_k: int, attention_mask: Tensor | None = None
    ) -> Tensor:
        """The loss of all layers' routing.

        Args:
            router_logits: one [T, E] for each layer, before the softmax.
            num_experts: E.
            top_k: K, choices for each token.
            attention_mask: [B, S] with B * S = T; rows where it is 0 do not count.

        Returns:
            float32 scalar, differentiable through the probabilities alone; nan where no row counts.
        """


def samples(variant: str, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Samples:
    """One layer and several, with padding and without; one row, and none."""
    for layers, tokens, experts, top_k, padded in (
        (1, 8, 4, 1, False),
        (3, 12, 8, 2, True),
        (2, 6, 5, 3, False),
        (2, 1, 4, 2, False),
        (1, 0, 4, 2, False),
    ):
        logits = tuple(
            torch.randn(tokens, experts, generator=generator, device=device).to(dtype) for _ in range(layers)
        )
        mask = (torch.arange(tokens, device=device) % 3 > 0).long().view(2, -1) if padded else None
        yield (logits, experts, top_k), {"attention_mask": mask}


def sized_samples(
    variant: str, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Samples:
    """64 tokens in each of two ``layers``, ``top_k`` of ``experts``."""
    shape = (math.prod(rows(sizes)), sizes["experts"])
    logits = tuple(
        torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(sizes.get("layers", 2))
    )
    yield (logits, sizes["experts"], sizes["top_k"]), {}


def cost(arguments: Mapping[str, Any], backward: bool) -> Cost:
    """Forward reads the logits; backward reads them again and writes their gradient."""
    return Cost((3 if backward else 1) * memory(*arguments["router_logits"]))


OP = Op(
    name="load_balancing_loss",
    variants={"standard": "transformers qwen3_moe.load_balancing_loss_func"},
    protocol=LoadBalancingLoss,
    preference=("triton", "compile", "eager"),
    samples=samples,
    sized_samples=sized_samples,
    long_rows={"length": 5, "layers": 2, "experts": 515, "top_k": 9},
    cost=cost,
    benchmarks=({"batch": 4, "length": 4096, "layers": 8, "experts": 128, "top_k": 8},),
)
