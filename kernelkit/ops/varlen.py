"""The mask of flash-attention: sequences of different lengths, end to end without padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelkit.ops.visibility import Visibility


@dataclass(frozen=True, eq=False)
class Varlen:
    """What ``flash_attn_varlen_func`` takes. Sequence i is causal, its last query aligned with its last key.

    Attributes:
        cu_seqlens_q, cu_seqlens_k: [sequences + 1] int32, where each sequence starts among the packed tokens.
        max_q, max_k: the longest sequence's numbers of queries and keys.
        q_indices, k_indices: where the packed tokens are in the flattened [B * Q] and [B * K]; None for all, in order.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_q: int
    max_k: int
    q_indices: Tensor | None = None
    k_indices: Tensor | None = None


def build_varlen(visibility: Visibility, sliding_window: int | None) -> Varlen | None:
    """The sequences of a batch; None where each row is one causal sequence that fills all slots.

    Padding is dropped, queries that are padding too. A packed document is a sequence of its own.

    Raises:
        ValueError: for a custom mask, and for a sliding window over a row with padding between its tokens: packing
            would close the gap, and the window would reach further than it should.
    """
    visibility.refuse_custom_mask("varlen")
    shift = visibility.known_shift()
    if shift is None:
        raise ValueError(
            "a mask of kind 'varlen' depends on the values of its inputs, which a traced graph cannot read"
        )
    seen = shift + visibility.q_length
    padded = visibility.has_padding(seen)
    if visibility.document_ids is None and not padded and seen == visibility.kv_length:
        return None

    keys = torch.arange(visibility.kv_length, device=visibility.device).expand(visibility.batch_size, -1) < seen
    real = visibility.real_keys()
    if padded and real is not None:
        keys = keys & real
        if sliding_window is not None and sliding_window < seen:
            _refuse_gaps(keys)
    queries = keys[:, shift:seen]
    key_counts, query_counts = _counts(visibility, keys, queries)
    max_k, max_q = torch.stack((key_counts.max(), query_counts.max())).tolist()
    whole = not padded and seen == visibility.kv_length
    return Varlen(
        cu_seqlens_q=_cumulative(query_counts),
        cu_seqlens_k=_cumulative(key_counts),
        max_q=max_q,
        max_k=max_k,
        q_indices=queries.flatten().nonzero().flatten() if padded else None,
        k_indices=None if whole else keys.flatten().nonzero().flatten(),
    )


def _counts(visibility: Visibility, keys: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of keys and of queries in each sequence."""
    documents = visibility.documents()
    if documents is None:
        return keys.sum(1), queries.sum(1)
    starts = F.pad(documents[0].diff() != 0, (1, 0), value=True)
    sequence = starts.flatten().cumsum(0) - 1
    counts = torch.zeros(int(sequence[-1]) + 1, dtype=torch.int64, device=queries.device)
    counts = counts.index_add(0, sequence, queries.flatten().long())
    return counts, counts


def _cumulative(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(0), (1, 0)).to(torch.int32)


def _refuse_gaps(keys: Tensor) -> None:
    starts = keys & ~F.pad(keys, (1, 0))[:, :-1]
    if bool((starts.sum(1) > 1).any()):
        raise ValueError(
            "a sliding window over a row with padding between its tokens cannot be expressed for flash-attention. "
            "Use attention: sdpa, eager or flex_attention."
        )
