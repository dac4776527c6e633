"""What a step of training reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelkit.distill.data.packing import Piece, Row

IGNORED = -100


class BatchId(NamedTuple):
    """Which batch: the epoch and the number of the step within it, both from 0."""

    epoch: int
    step: int

    def __str__(self) -> str:
        return f"batch {self.step} of epoch {self.epoch}"


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of one forward pass.

    Attributes:
        input_ids: [B, S] int64.
        labels: [B, S] int64, ``input_ids`` where a token is predicted, else -100. Models shift them: position i
            predicts label i + 1. The first token of each document is not predicted, so that none predicts the next.
        position_ids: [B, S] int64, from 0 again at each document of a packed row, and at the padding after them.
        attention_mask: [B, S] int64, 0 for padding; None for packed rows, in which positions tell documents apart.
        id: the batch that these rows are from.
        plain: each row is full of one document, so that a causal model needs to be told neither positions nor mask.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    id: BatchId
    plain: bool = False

    @property
    def num_targets(self) -> int:
        """How many tokens are predicted here."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    def context(self) -> dict[str, Tensor]:
        """The arguments of a model's ``forward``, without labels. Plain rows need no mask, and no time for one."""
        if self.plain:
            return {"input_ids": self.input_ids}
        given = {"position_ids": self.position_ids, "attention_mask": self.attention_mask}
        return {"input_ids": self.input_ids, **{name: value for name, value in given.items() if value is not None}}

    def inputs(self) -> dict[str, Tensor]:
        """The arguments of a model's ``forward``."""
        return {**self.context(), "labels": self.labels}

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch on ``device``."""
        mask = self.attention_mask
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            position_ids=self.position_ids.to(device, non_blocking=non_blocking),
            attention_mask=mask if mask is None else mask.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True, eq=False)
class Step:
    """What one rank reads for one step of the optimizer.

    Attributes:
        id: the batch.
        micro_batches: this rank's rows.
        num_targets: how many tokens are predicted in the whole batch, over all micro-batches and ranks: the divisor of
            the summed loss, known on each rank without asking the others.
        num_tokens: how many tokens the whole batch has, without padding.
    """

    id: BatchId
    micro_batches: tuple[Batch, ...]
    num_targets: int
    num_tokens: int


def collate(rows: Sequence[Row], seq_len: int, pad_id: int, *, packed: bool, batch_id: BatchId) -> Batch:
    """Write rows into tensors. A row may be empty: then it is all padding, and predicts nothing."""
    shape = (len(rows), seq_len)
    input_ids, labels = np.full(shape, pad_id, np.int64), np.full(shape, IGNORED, np.int64)
    position_ids = np.tile(np.arange(seq_len), (len(rows), 1))
    attention_mask = np.zeros(shape, np.int64)
    # A row of padding alone keeps one visible token, since not every attention kernel takes a sequence of none.
    attention_mask[:, 0] = 1
    for number, row in enumerate(rows):
        at = 0
        for piece in row:
            end = at + piece.length
            input_ids[number, at:end] = piece.tokens.ids[piece.start : piece.stop]
            labels[number, at + 1 : end] = _labels(piece)
            position_ids[number, at:end] = np.arange(piece.length)
            at = end
        attention_mask[number, :at] = 1
        if packed:
            position_ids[number, at:] = np.arange(seq_len - at)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(position_ids),
        attention_mask=None if packed else torch.from_numpy(attention_mask),
        id=batch_id,
        plain=all(len(row) == 1 and row[0].length == seq_len for row in rows),
    )


def _labels(piece: Piece) -> NDArray[np.int64]:
    """The labels of all tokens of a piece but its first, which is never predicted."""
    rest = slice(piece.start + 1, piece.stop)
    ids = piece.tokens.ids[rest].astype(np.int64)
    return ids if piece.tokens.learnt is None else np.where(piece.tokens.learnt[rest], ids, IGNORED)
