"""Rotary position embedding in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from kernelkit.spec import KernelSpec


def full(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As ``apply_rotary_pos_emb`` of llama."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return query * cos + _rotate_half(query) * sin, key * cos + _rotate_half(key) * sin


def partial(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As ``apply_rotary_pos_emb`` of qwen3_next."""
    width = cos.shape[-1]
    rotated_query, rotated_key = full(query[..., :width], key[..., :width], cos, sin)
    return _with_rest(rotated_query, query), _with_rest(rotated_key, key)


def interleaved(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As ``apply_rotary_pos_emb`` of glm4."""
    width = cos.shape[-1]
    # The halves hold the same angles; neighbours need the same one.
    cos = cos[..., : width // 2].repeat_interleave(2, dim=-1).unsqueeze(1)
    sin = sin[..., : width // 2].repeat_interleave(2, dim=-1).unsqueeze(1)
    turning_query, turning_key = query[..., :width], key[..., :width]
    rotated_query = turning_query * cos + _rotate_pairs(turning_query) * sin
    rotated_key = turning_key * cos + _rotate_pairs(turning_key) * sin
    return _with_rest(rotated_query, query), _with_rest(rotated_key, key)


def _rotate_half(states: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _rotate_pairs(states: Tensor) -> Tensor:
    return torch.stack((-states[..., 1::2], states[..., 0::2]), dim=-1).flatten(-2)


def _with_rest(rotated: Tensor, states: Tensor) -> Tensor:
    return torch.cat((rotated, states[..., rotated.shape[-1] :]), dim=-1)


SPECS = tuple(
    KernelSpec(
        op="rotary_pos_emb",
        variant=variant,
        name="eager",
        factory=f"{__name__}:{variant}",
        description="The reference, step by step as transformers computes it.",
    )
    for variant in ("full", "partial", "interleaved")
)
