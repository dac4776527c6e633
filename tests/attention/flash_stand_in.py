"""The two flash-attention packages' functions in plain PyTorch, with their signatures and their rules.

Signatures: Dao-AILab/flash-attention, ``flash_attn/flash_attn_interface.py`` of 2.8 and
``hopper/flash_attn_interface.py`` of 3.0.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    causal: bool,
    window: tuple[int, int],
    softcap: float,
) -> Tensor:
    """One sequence, [Q, H, D]. The last query is aligned with the last key; a query that sees nothing gives zeros."""
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap > 0.0:
        scores = softcap * torch.tanh(scores / softcap)
    own = torch.arange(len(query), device=query.device)[:, None] + len(key) - len(query)
    slot = torch.arange(len(key), device=query.device)
    left, right = window[0], 0 if causal else window[1]
    hidden = torch.zeros(len(query), len(key), dtype=torch.bool, device=query.device)
    if left >= 0:
        hidden |= slot < own - left
    if right >= 0:
        hidden |= slot > own + right
    scores = scores.masked_fill(hidden, float("-inf"))
    weights = torch.nan_to_num(scores.softmax(-1)) if len(key) else scores
    return torch.einsum("hqk,khd->qhd", weights.to(value.dtype), value)


def attend_rows(query: Tensor, key: Tensor, value: Tensor, *rules: Any) -> Tensor:
    return torch.stack([attend(*row, *rules) for row in zip(query, key, value, strict=True)])


def attend_packed(
    query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *rules: Any
) -> Tensor:
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert type(max_q) is type(max_k) is int
    q_ends, k_ends = cu_q.tolist(), cu_k.tolist()
    assert q_ends[-1] == len(query) > 0
    assert k_ends[-1] == len(key)
    q_lengths, k_lengths = cu_q.diff().tolist(), cu_k.diff().tolist()
    assert (max(q_lengths), max(k_lengths)) == (max_q, max_k)
    pieces = zip(query.split(q_lengths), key.split(k_lengths), value.split(k_lengths), strict=True)
    return torch.cat([attend(*piece, *rules) for piece in pieces])


def flash_attn() -> Any:
    """A module with the functions of flash-attn 2.8."""
    module: Any = ModuleType("flash_attn")
    module.calls = []

    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        alibi_slopes=None, deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        module.calls.append(("dense", {"dropout_p": dropout_p, "deterministic": deterministic}))
        return attend_rows(q, k, v, softmax_scale, causal, window_size, softcap)

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        module.calls.append(("varlen", {"dropout_p": dropout_p, "deterministic": deterministic}))
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return attend_packed(q, k, v, *lengths, softmax_scale, causal, window_size, softcap)

    module.flash_attn_func, module.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    return module


def flash_attn_interface(*, beta: bool = False) -> Any:
    """A module with the functions of flash-attn-3; its betas return the log-sum-exp beside the output."""
    module: Any = ModuleType("flash_attn_interface")
    module.calls = []

    def flash_attn_func(
        q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        module.calls.append(("dense", {"deterministic": deterministic}))
        output = attend_rows(q, k, v, softmax_scale, causal, window_size, softcap)
        return (output, torch.empty(0)) if beta else output

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        module.calls.append(("varlen", {"deterministic": deterministic}))
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        output = attend_packed(q, k, v, *lengths, softmax_scale, causal, window_size, softcap)
        return (output, torch.empty(0)) if beta else output

    module.flash_attn_func, module.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    return module
