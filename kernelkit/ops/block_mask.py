"""The mask of ``torch.nn.attention.flex_attention``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelkit.ops.visibility import Visibility

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Side of a block, torch's default."""

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def build_block_mask(visibility: Visibility, sliding_window: int | None) -> BlockMask:
    """A ``BlockMask`` over [B or 1, 1, Q, K], for any Q and K.

    ``create_block_mask`` evaluates every pair of query and key, which takes Q * K memory unless it is compiled.
    Positions and documents only grow along a row, so that here the ends of a block decide whether it is empty or full.
    """
    from torch.nn.attention.flex_attention import BlockMask

    some, every = _blocks(visibility, sliding_window)
    return BlockMask.from_kv_blocks(
        *_ordered(some & ~every),
        *_ordered(some & every),
        BLOCK_SIZE=BLOCK,
        mask_mod=_mask_mod(visibility, sliding_window),
        seq_lengths=(visibility.q_length, visibility.kv_length),
    )


def _mask_mod(visibility: Visibility, sliding_window: int | None) -> MaskMod:
    # Compiled in as numbers, a second layer's window or the next decoding step would compile the kernel anew.
    window = None if sliding_window is None else _scalar(sliding_window, visibility.device)
    # Without cached keys, which is how models are trained, there is no shift to load.
    aligned = not isinstance(visibility.shift, Tensor) and visibility.shift == 0
    shift = None if aligned else _scalar(visibility.shift, visibility.device)
    documents, real = visibility.documents(), visibility.real_keys()

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, slot: Tensor) -> Tensor:
        own = query if shift is None else query + shift
        seen = slot <= own
        if window is not None:
            seen = seen & (slot > own - window)
        if documents is not None:
            seen = seen & (documents[0][batch, query] == documents[1][batch, slot])
        if real is not None:
            seen = seen & (real[batch, slot] | (slot == own))
        return seen

    return mask_mod


def _blocks(visibility: Visibility, sliding_window: int | None) -> tuple[Tensor, Tensor]:
    """[B or 1, 1, Q blocks, K blocks]: whether some pair in a block may be visible, and whether every pair is."""
    first_query, last_query = _ends(visibility.q_length, visibility.device)
    first_slot, last_slot = _ends(visibility.kv_length, visibility.device)
    first_own = (first_query + visibility.shift)[:, None]
    last_own = (last_query + visibility.shift)[:, None]

    some = first_slot <= last_own
    # A ragged block is never full, so that the kernel applies mask_mod and its bounds to it.
    every = (last_slot <= first_own) & (last_slot - first_slot == BLOCK - 1) & (last_own - first_own == BLOCK - 1)
    if sliding_window is not None:
        some = some & (last_slot > first_own - sliding_window)
        every = every & (first_slot > last_own - sliding_window)
    some, every = some[None, None], every[None, None]

    documents = visibility.documents()
    if documents is not None:
        low, high = (documents[0][:, None, end, None] for end in (first_query, last_query))
        key_low, key_high = (documents[1][:, None, None, end] for end in (first_slot, last_slot))
        some = some & (key_low <= high) & (low <= key_high)
        every = every & (key_low == high) & (low == key_high)

    real = visibility.real_keys()
    if real is not None:
        padded = F.pad(real, (0, len(first_slot) * BLOCK - visibility.kv_length)).view(len(real), -1, BLOCK)
        diagonal = (first_slot <= last_own) & (last_slot >= first_own)
        some = some & (padded.any(-1)[:, None, None] | diagonal)
        every = every & padded.all(-1)[:, None, None]
    return some, every


def _ends(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    first = torch.arange(0, length, BLOCK, device=device)
    return first, (first + BLOCK - 1).clamp(max=length - 1)


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The number of chosen blocks in each row of blocks, and all indices with the chosen ones first."""
    chosen = blocks.to(torch.int32)
    return chosen.sum(-1, dtype=torch.int32), chosen.argsort(dim=-1, descending=True, stable=True).to(torch.int32)


def _scalar(number: int | Tensor, device: torch.device) -> Tensor:
    return number if isinstance(number, Tensor) else torch.full((), number, device=device)
