"""The choice of experts for each token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from kernelkit.ops.cost import memory, rows
from kernelkit.spec import Cost, Op, Samples


class MoERouter(Protocol):
    """The K most probable experts by a softmax over all (Shazeer et al., arXiv:1701.06538), as ``Qwen3MoeTopKRouter``.

    The softmax is taken in float32, whatever the dtype of the logits.
    """

    def __call__(self, router_logits: Tensor, top_k: int, norm_topk_prob: bool) -> tuple[Tensor, Tensor]:
        """Choose for each row of ``router_logits`` [T, E].

        Args:
            router_logits: [T, E], T may be zero.
            top_k: K, at most E.
            norm_topk_prob: divide the probabilities of the chosen by their sum.

        Returns:
            The probabilities [T, K] of the chosen, in the dtype of the logits, differentiable; and which they are,
            [T, K] int64, by falling logits. Of equal logits any may be chosen first.

        Raises:
            Exception: for more choices than experts; of which type is up to the implementation.
        """


def samples(variant: str, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Samples:
    """One choice, all experts, one row, none, and a number of experts that no block has; no two logits are equal."""
    for tokens, experts, top_k, normed in ((8, 4, 1, False), (12, 8, 2, True), (6, 5, 5, True), (1, 4, 2, False)):
        yield (_logits(tokens, experts, dtype, device, generator), top_k, normed), {}
    yield (_logits(7, 130, dtype, device, generator), 8, False), {}
    yield (_logits(0, 4, dtype, device, generator), 2, True), {}


def sized_samples(
    variant: str, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Samples:
    """``top_k`` of ``experts``, for ``batch * length`` tokens."""
    logits = _logits(math.prod(rows(sizes)), sizes["experts"], dtype, device, generator)
    yield (logits, sizes["top_k"], True), {}


def _logits(tokens: int, experts: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensor:
    """Between -4 and 4, in steps that eight bits of a mantissa tell apart for 512 experts and fewer."""
    order = torch.rand(tokens, experts, generator=generator, device=device).argsort(dim=-1)
    return ((order - experts // 2) * 2.0 ** -math.ceil(math.log2(experts / 8))).to(dtype)


def cost(arguments: Mapping[str, Any], backward: bool) -> Cost:
    """Forward reads the logits and writes weights and indices; backward reads all that again and writes a gradient."""
    logits = arguments["router_logits"]
    chosen = logits.shape[0] * arguments["top_k"] * (logits.element_size() + 8)
    return Cost(3 * memory(logits) + 2 * chosen if backward else memory(logits) + chosen)


OP = Op(
    name="moe_router",
    variants={"standard": "transformers Qwen3MoeTopKRouter, after its product"},
    protocol=MoERouter,
    preference=("triton", "eager"),
    samples=samples,
    sized_samples=sized_samples,
    long_rows={"length": 5, "experts": 509, "top_k": 9},
    counts=(1,),
    cost=cost,
    benchmarks=({"batch": 4, "length": 4096, "experts": 128, "top_k": 8},),
)
