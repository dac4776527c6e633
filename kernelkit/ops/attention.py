"""Scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from kernelkit.ops.cost import memory, rows
from kernelkit.ops.masks import MaskKind, Visibility, build_mask, document_ids
from kernelkit.spec import Cost, Kernel, Op, Samples


class Attention(Protocol):
    """softmax(scaling * q k^T) v over the keys that each query may see (Vaswani et al., arXiv:1706.03762).

    The kernel owns its mask: its trait ``mask`` names the form in which it wants to be told who sees whom, and the
    model builds that form from a :class:`kernelkit.ops.masks.Visibility`, once for each form and forward pass. Every
    variant is causal and keeps packed documents apart.

    - ``causal``: each query sees itself and all earlier keys
    - ``sliding_window``: of those, only the last ``sliding_window``
    - ``softcap``: scores become softcap * tanh(scores / softcap) before the mask; a window is allowed
    """

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        *,
        scaling: float,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from ``query`` to ``key`` and ``value``.

        Args:
            query: [B, Hq, Q, D], any strides.
            key: [B, Hkv, K, D], Hq a multiple of Hkv; K counts cached keys.
            value: [B, Hkv, K, Dv].
            mask: what ``build_mask`` made for this kernel's trait ``mask``. What None means depends on that trait, by
                the table in :mod:`kernelkit.ops.masks`; a kernel raises ValueError where it means nothing.
            scaling: factor of the scores, usually D ** -0.5.
            dropout: probability of dropping an attention weight; 0 outside training.
            sliding_window: width of the window, which every form of mask but ``varlen`` holds already.
            softcap: as above, or None.

        Returns:
            The output [B, Q, Hq, Dv], and the attention weights [B, Hq, Q, K] where the trait ``weights`` says so, else
            None. Rows of queries that are padding differ between kernels, but they and their gradients are finite.

        Raises:
            ValueError: for dropout, softcap or a missing mask that the kernel cannot do.
        """


class AttentionTraits(BaseModel):
    """What an attention kernel states about itself.

    Attributes:
        mask: the form of mask it reads; see :mod:`kernelkit.ops.masks`.
        weights: it returns the attention weights, so that ``output_attentions=True`` works.
    """

    model_config = ConfigDict(extra="forbid")

    mask: MaskKind
    weights: bool = False


def on_visibility(kernel: Kernel, mask: str) -> Kernel:
    """``kernel`` with a ``Visibility`` in the place of its mask, so that kernels with any form of mask compare."""

    def attend(query: Tensor, key: Tensor, value: Tensor, visibility: Visibility, **keywords: Any) -> Any:
        built = build_mask(mask, replace(visibility, dtype=query.dtype), keywords.get("sliding_window"))
        return kernel(query, key, value, built, **keywords)

    return attend


def on_samples(kernel: Kernel, traits: Mapping[str, Any]) -> Kernel:
    """``kernel`` as the samples call it. One that states nothing about itself is taken for one like eager."""
    return on_visibility(kernel, traits.get("mask", "additive"))


def samples(variant: str, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Samples:
    """Calls with a ``Visibility`` as the mask; see :func:`on_visibility`. No query is padding, so all kernels agree.

    A square of one row, grouped heads, packed documents, decoding and a chunk over padded keys, a static buffer.
    """
    left = torch.tensor([[False, False, True, True, True, True, True], [True] * 7], device=device)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6, 7]], device=device)
    cases: tuple[tuple[int, int, int, dict[str, Any]], ...] = (
        (4, 9, 9, {}),
        (4, 1, 7, {"q_offset": 6, "padding_mask": left}),
        (2, 3, 7, {"q_offset": 4, "padding_mask": left}),
        (1, 9, 9, {"document_ids": document_ids(positions)}),
        (1, 130, 200, {}),
    )
    keywords: dict[str, Any] = {"sliding_window": 3} if variant == "sliding_window" else {}
    for kv_heads, queries, slots, facts in cases:
        shapes = ((2, 4, queries, 16), (2, kv_heads, slots, 16), (2, kv_heads, slots, 16))
        tensors = (torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes)
        visibility = Visibility(2, queries, slots, dtype=dtype, device=device, **facts)
        softcap = {"softcap": 2.0} if variant == "softcap" else {}
        yield (*tensors, visibility), {"scaling": 0.25, **keywords, **softcap}


def sized_samples(
    variant: str, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Samples:
    """64 positions of two rows, ``heads`` over ``kv_heads`` with ``head_dim`` channels; a window of a quarter."""
    heads, kv_heads, dim = sizes["heads"], sizes["kv_heads"], sizes["head_dim"]
    batch, length = rows(sizes)
    tensors = (
        torch.randn(batch, length, count, dim, generator=generator, device=device).to(dtype).transpose(1, 2)
        for count in (heads, kv_heads, kv_heads)
    )
    keywords: dict[str, Any] = {"sliding_window": length // 4} if variant == "sliding_window" else {}
    softcap = {"softcap": 50.0} if variant == "softcap" else {}
    visibility = Visibility(batch, length, length, dtype=dtype, device=device)
    yield (*tensors, visibility), {"scaling": dim**-0.5, **keywords, **softcap}


def cost(arguments: Mapping[str, Any], backward: bool) -> Cost:
    """Two products over the pairs that causality and the window leave, and five in backward, which has no scores.

    Forward reads three tensors and writes one; backward reads these and a gradient, and writes gradients.
    """
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    output = memory(query) * value.shape[-1] // query.shape[-1]
    pairs = _visible_pairs(query.shape[2], key.shape[2], arguments.get("sliding_window"))
    flops = query.shape[0] * query.shape[1] * pairs * (query.shape[-1] + value.shape[-1]) * 2
    inputs = memory(query, key, value)
    return Cost(3 * (inputs + output) if backward else inputs + output, flops * 7 // 2 if backward else flops)


def _visible_pairs(queries: int, keys: int, window: int | None) -> int:
    """Of a query and a key, where the last query sees the last key and nothing is padding."""
    seen = range(keys - queries + 1, keys + 1)
    return sum(min(count, window or count) for count in seen)


OP = Op(
    name="attention",
    variants={
        "causal": "transformers LlamaAttention",
        "sliding_window": "transformers Qwen2Attention with layer_types 'sliding_attention'",
        "softcap": "transformers Gemma2Attention",
    },
    protocol=Attention,
    default="sdpa",
    variant_defaults={"softcap": "eager"},
    preference=("flash_attention_3", "flash_attention_2", "sdpa", "flex_attention", "eager"),
    traits=AttentionTraits,
    samples=samples,
    sized_samples=sized_samples,
    long_rows={"length": 300, "heads": 4, "kv_heads": 2, "head_dim": 128},
    on_samples=on_samples,
    cost=cost,
    benchmarks=({"batch": 8, "length": 2048, "heads": 16, "kv_heads": 8, "head_dim": 128},),
)
