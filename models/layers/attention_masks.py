"""Who sees whom in one forward pass, in the form that each layer's attention kernel reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache

from kernelkit.ops.masks import Visibility, build_mask, document_ids


class MaskReader(Protocol):
    """What is asked of an attention module: the form of mask that its kernel reads, its window, and its number."""

    mask_kind: str
    layer_idx: int

    @property
    def sliding_window(self) -> int | None:
        """Width of the window, None where the layer sees everything before it."""


MaskKey = tuple[str, int | None]
"""The form of mask and the sliding window; layers that share both share a mask."""


def mask_key(attention: MaskReader) -> MaskKey:
    """Which mask an attention module reads."""
    return attention.mask_kind, attention.sliding_window


def attention_masks(
    attentions: Iterable[MaskReader],
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past_key_values: Cache | None,
) -> dict[MaskKey, Any]:
    """One mask for each kind that the layers read.

    Args:
        attentions: the attention modules.
        inputs_embeds: [B, S, H].
        attention_mask: [B, tokens so far], 0 for padding; or a mask of one's own, [B, 1 or heads, S, K].
        position_ids: [B or 1, S] as the user gave them; where they start again, a new document starts.
        past_key_values: the cache, before this pass's keys are added.
    """
    is_custom = attention_mask is not None and attention_mask.ndim == 4
    padding, custom = (None, attention_mask) if is_custom else (attention_mask, None)
    documents = None
    if position_ids is not None and not _has_cached_tokens(past_key_values):
        documents = document_ids(position_ids.expand(inputs_embeds.shape[0], -1))
    masks: dict[MaskKey, Any] = {}
    for attention in attentions:
        key = mask_key(attention)
        if key not in masks:
            q_offset, kv_length, kv_offset = _geometry(inputs_embeds, padding, past_key_values, attention.layer_idx)
            visibility = Visibility(
                batch_size=inputs_embeds.shape[0],
                q_length=inputs_embeds.shape[1],
                kv_length=kv_length,
                q_offset=q_offset,
                kv_offset=kv_offset,
                padding_mask=None if padding is None else padding.to(inputs_embeds.device, torch.bool),
                document_ids=documents,
                custom_mask=custom,
                dtype=inputs_embeds.dtype,
                device=inputs_embeds.device,
            )
            masks[key] = build_mask(attention.mask_kind, visibility, attention.sliding_window)
    return masks


def _has_cached_tokens(past_key_values: Cache | None) -> bool:
    # A cache that is compiled over counts its tokens in a tensor; it is never handed packed documents.
    length = 0 if past_key_values is None else past_key_values.get_seq_length()
    return isinstance(length, Tensor) or length > 0


def _geometry(
    inputs_embeds: Tensor, padding: Tensor | None, past_key_values: Cache | None, layer_idx: int
) -> tuple[int | Tensor, int, int]:
    """Index of the first query, number of keys, and index of the first key, as one layer's cache will have them."""
    length = inputs_embeds.shape[1]
    if past_key_values is None:
        return 0, length if padding is None else padding.shape[-1], 0
    offset = past_key_values.get_query_offset(layer_idx)
    return offset, *past_key_values.get_mask_sizes(length, layer_idx)
