"""Attention as it is written in the paper, with the roundings of transformers' ``eager_attention_forward``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelkit.spec import KernelSpec


def eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """See :class:`kernelkit.ops.attention.Attention`. The softmax is taken in float32, the rest in the dtype of query.

    Equal to the bit to LlamaAttention's and, with ``softcap``, to Gemma2Attention's eager form.

    Raises:
        ValueError: without a mask for several queries, which would let them see the future.
    """
    if mask is None and query.shape[2] > 1:
        raise ValueError("attention: eager needs the mask that build_mask('additive', ...) makes for several queries")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


SPECS = [
    KernelSpec(
        op="attention",
        variant=variant,
        name="eager",
        factory="kernelkit.kernels.attention.eager:eager",
        traits={"mask": "additive", "weights": True},
        description="Matrix products and a softmax; returns the attention weights.",
    )
    for variant in ("causal", "sliding_window", "softcap")
]
