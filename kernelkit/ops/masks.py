"""The forms in which attention kernels are told who sees whom.

| kind       | form                                          | None means                                             |
|------------|-----------------------------------------------|--------------------------------------------------------|
| `none`     | always None                                   | query i sees keys 0..i, Q = K; or Q = 1 sees all keys  |
| `bool`     | [B, 1, Q, K], True is visible                 | query i sees keys 0..i, Q <= K; or Q = 1 sees all keys |
| `additive` | [B, 1, Q, K], 0 or the lowest number of dtype | Q = 1 sees all keys                                    |
| `block`    | `torch.nn.attention.flex_attention.BlockMask` | Q = 1 sees all keys                                    |
| `varlen`   | :class:`Varlen`                               | query i sees keys 0..K-Q+i, within the kernel's window |

All but `varlen`, whose shapes depend on the data, can be traced by `torch.compile(fullgraph=True)`. Outside a trace a
padding mask that hides nothing is recognised, at the price of one host sync as in transformers, so that SDPA keeps its
flash kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from kernelkit.errors import did_you_mean, listing
from kernelkit.ops.block_mask import build_block_mask
from kernelkit.ops.varlen import Varlen, build_varlen
from kernelkit.ops.visibility import Visibility, document_ids

__all__ = ["MaskKind", "Varlen", "Visibility", "build_mask", "document_ids"]

MaskKind = Literal["none", "bool", "additive", "block", "varlen"]


def build_mask(kind: str, visibility: Visibility, sliding_window: int | None = None) -> Any:
    """The mask of one ``kind``, as this module's table describes it.

    Args:
        kind: ``none``, ``bool``, ``additive``, ``block`` or ``varlen``.
        visibility: who sees whom.
        sliding_window: number of keys, its own among them, that a query sees at most; None for all.

    Raises:
        ValueError: for an unknown kind, a visibility that the kind cannot express, and a custom mask of a wrong shape.
    """
    builder = _BUILDERS.get(kind)
    if builder is None:
        raise ValueError(f"unknown kind of mask {kind!r}.{did_you_mean(kind, _BUILDERS)} Known: {listing(_BUILDERS)}.")
    return builder(visibility, sliding_window)


def _none(visibility: Visibility, sliding_window: int | None) -> None:
    square = visibility.q_length in (1, visibility.kv_length)
    if not (square and _is_plainly_causal(visibility, sliding_window)):
        raise ValueError(
            "this attention kernel takes no mask, and the input needs one: it has padding, packed documents, an "
            "effective sliding window, a custom mask, or cached keys before several queries"
        )


def _bool(visibility: Visibility, sliding_window: int | None) -> Tensor | None:
    if visibility.custom_mask is not None:
        return _custom(visibility)
    if _is_plainly_causal(visibility, sliding_window):
        return None
    return _visible(visibility, sliding_window).expand(visibility.batch_size, -1, -1, -1)


def _additive(visibility: Visibility, sliding_window: int | None) -> Tensor | None:
    if visibility.custom_mask is not None:
        mask = _custom(visibility)
        return _lowest_where_false(mask, visibility.dtype) if mask.dtype == torch.bool else mask
    if visibility.q_length == 1 and _is_plainly_causal(visibility, sliding_window):
        return None
    mask = _lowest_where_false(_visible(visibility, sliding_window), visibility.dtype)
    return mask.expand(visibility.batch_size, -1, -1, -1)


def _block(visibility: Visibility, sliding_window: int | None) -> Any:
    visibility.refuse_custom_mask("block")
    if visibility.q_length == 1 and _is_plainly_causal(visibility, sliding_window):
        return None
    return build_block_mask(visibility, sliding_window)


_BUILDERS: dict[str, Callable[[Visibility, int | None], Any]] = {
    "none": _none,
    "bool": _bool,
    "additive": _additive,
    "block": _block,
    "varlen": build_varlen,
}


def _is_plainly_causal(visibility: Visibility, sliding_window: int | None) -> bool:
    """Whether ``is_causal`` of SDPA (Q > 1) or no mask at all (Q = 1) says the same as a mask would."""
    if visibility.custom_mask is not None or visibility.document_ids is not None:
        return False
    if visibility.q_length == 1 and isinstance(visibility.q_offset, Tensor):
        return False  # decoding with a static cache: a host sync for every token would cost more than the mask
    shift = visibility.known_shift()
    if shift is None:
        return False
    seen = shift + visibility.q_length
    if sliding_window is not None and seen > sliding_window:
        return False
    aligned = shift == 0 if visibility.q_length > 1 else seen == visibility.kv_length
    return aligned and not visibility.has_padding(seen)


def _visible(visibility: Visibility, sliding_window: int | None) -> Tensor:
    """[B, 1, Q, K] bool; [1, 1, Q, K] where every row of the batch sees the same."""
    device = visibility.device
    own = (torch.arange(visibility.q_length, device=device) + visibility.shift).view(1, 1, -1, 1)
    slot = torch.arange(visibility.kv_length, device=device).view(1, 1, 1, -1)
    earlier = slot < own
    if sliding_window is not None:
        earlier = earlier & (slot > own - sliding_window)
    documents = visibility.documents()
    if documents is not None:
        earlier = earlier & (documents[0][:, None, :, None] == documents[1][:, None, None, :])
    real = visibility.real_keys()
    # One pass over B * Q * K: earlier keys count where they are real, and the query's own key always does.
    return earlier | (slot == own) if real is None else torch.where(earlier, real[:, None, None, :], slot == own)


def _lowest_where_false(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(mask, torch.zeros((), dtype=dtype, device=mask.device), torch.finfo(dtype).min)


def _custom(visibility: Visibility) -> Tensor:
    """The user's mask; a row that sees nothing sees everything instead of dividing zero by zero."""
    mask = visibility.custom_mask
    assert mask is not None
    wanted = (visibility.q_length, visibility.kv_length)
    if mask.ndim != 4 or mask.shape[0] not in (1, visibility.batch_size) or mask.shape[2:] != wanted:
        raise ValueError(
            f"a 4-D attention mask is [{visibility.batch_size} or 1, 1 or heads, {wanted[0]}, {wanted[1]}] here, "
            f"and this one is {list(mask.shape)}"
        )
    mask = mask.to(visibility.device)
    if mask.dtype == torch.bool:
        return mask | ~mask.any(dim=-1, keepdim=True)
    if not mask.is_floating_point():
        raise ValueError(f"a 4-D attention mask is bool or floating, and this one is {mask.dtype}")
    mask = mask.to(visibility.dtype)
    return mask.masked_fill((mask <= torch.finfo(mask.dtype).min).all(dim=-1, keepdim=True), 0.0)
