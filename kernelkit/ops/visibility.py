"""Who sees whom in one forward pass, before any kernel's form of mask is chosen."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


@dataclass(frozen=True, eq=False)
class Visibility:
    """The queries, the keys and what hides them from each other. A model builds it from its inputs and its cache.

    Query i has position ``q_offset + i``; the key in slot j has position ``kv_offset + j``. A query sees the keys of
    its own and of earlier positions, less padding and other documents. A query that is padding itself still sees its
    own key, so that no row of a mask is empty.

    Attributes:
        batch_size, q_length, kv_length: B, Q and K. K counts every slot, those of a static cache not yet written too.
        q_offset: position of the first query; a 0-dim tensor with a static cache.
        kv_offset: position of the first key; above 0 once a sliding cache has dropped keys.
        padding_mask: [B, tokens seen so far] bool, False is padding. Slots that it does not reach are not visible.
        document_ids: [B or 1, Q] integers that never decrease along a row, one for each packed document. Only where the
            keys are this forward's own tokens, possibly at the start of a longer static buffer.
        custom_mask: a user's own mask, [B or 1, 1 or H, Q, K], bool (True is visible) or added to the scores. It is
            the whole truth: nothing of the above, and no window, is added to it.
        dtype: dtype of the scores.
        device: where masks are made.
    """

    batch_size: int
    q_length: int
    kv_length: int
    q_offset: int | Tensor = 0
    kv_offset: int = 0
    padding_mask: Tensor | None = None
    document_ids: Tensor | None = None
    custom_mask: Tensor | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def shift(self) -> int | Tensor:
        """Slot of the first query's own key."""
        return self.q_offset - self.kv_offset

    def known_shift(self) -> int | None:
        """``shift`` as a number, read from the device if need be; None where a graph is traced and it cannot be."""
        if not isinstance(self.shift, Tensor):
            return self.shift
        return int(self.shift) if can_read(self.shift) else None

    def has_padding(self, slots: int) -> bool:
        """Whether one of the first ``slots`` keys is padding. While a graph is traced: whether one may be."""
        if self.padding_mask is None:
            return False
        real = self.padding_mask[:, self.kv_offset : self.kv_offset + slots]
        # transformers found a sum to be much faster than all().
        return real.shape[1] < slots or not can_read(real) or bool(real.sum() != real.numel())

    def real_keys(self) -> Tensor | None:
        """[B, K] bool, True where a slot holds a token that is not padding; None without a padding mask."""
        if self.padding_mask is None:
            return None
        real = self.padding_mask[:, self.kv_offset : self.kv_offset + self.kv_length]
        return F.pad(real, (0, self.kv_length - real.shape[1])) if real.shape[1] < self.kv_length else real

    def documents(self) -> tuple[Tensor, Tensor] | None:
        """The document of each query [B, Q] and slot [B, K]; slots past the last query, seen by none, repeat it."""
        if self.document_ids is None:
            return None
        if not isinstance(self.shift, Tensor) and self.shift != 0:
            raise ValueError(
                f"document_ids need keys that are this forward's own tokens, and the first query has slot {self.shift}"
            )
        queries = self.document_ids.expand(self.batch_size, -1)
        slots = torch.arange(self.kv_length, device=queries.device).clamp(max=self.q_length - 1)
        return queries, queries if self.kv_length == self.q_length else queries[:, slots]

    def refuse_custom_mask(self, kind: str) -> None:
        """Raise where a user's own mask meets a kernel that cannot read one."""
        if self.custom_mask is not None:
            raise ValueError(
                f"a 4-D attention mask cannot be turned into a mask of kind {kind!r}. "
                "Use attention: sdpa or eager, which read any mask."
            )


def can_read(tensor: Tensor) -> bool:
    """Whether the values of ``tensor`` may be looked at: no graph is being traced or captured."""
    if torch.compiler.is_compiling() or isinstance(tensor, FakeTensor) or tensor.is_meta:
        return False
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]  # public, but neither exported nor typed
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def document_ids(position_ids: Tensor) -> Tensor | None:
    """The document of each token in packed rows, from position ids that restart.

    A document begins wherever the position is not one more than the one before, as in transformers'
    ``find_packed_sequence_indices``.

    Args:
        position_ids: [B, S].

    Returns:
        [B, S] int64, from 0 upwards in each row; None if every row is one document. While a graph is traced, this
        cannot be looked up and the ids are returned as they are.
    """
    starts = position_ids[:, 1:] != position_ids[:, :-1] + 1
    ids = F.pad(starts.cumsum(-1), (1, 0))
    return None if can_read(ids) and not bool(ids[:, -1].any()) else ids
