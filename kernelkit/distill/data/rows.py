"""The rows of one epoch, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernelkit.distill.data.documents import Documents
from kernelkit.distill.data.encoding import Encoder, Tokens
from kernelkit.distill.data.packing import Row, pack, split

ITEMS_AT_ONCE = 32
BLOCK_ROWS = 128
MOST_CACHED = 2**28


class Cursor(NamedTuple):
    """Where in an epoch the next row is.

    Attributes:
        item: position in the epoch's order of documents at which the row's block begins.
        row: number of the row in its block.
    """

    item: int = 0
    row: int = 0


START = Cursor()


class TokenCache:
    """The tokens of documents, made when they are first asked for, and kept as long as there is room."""

    def __init__(self, documents: Documents, encoder: Encoder, most_cached: int = MOST_CACHED) -> None:
        self.documents, self.encoder, self.most_cached = documents, encoder, most_cached
        self._kept: dict[int, Tokens] = {}
        self._size = 0

    def __call__(self, items: Sequence[int]) -> list[Tokens]:
        """The tokens of the documents with these numbers."""
        missing = [item for item in items if item not in self._kept]
        made = (
            dict(zip(missing, self.encoder([self.documents[item] for item in missing]), strict=True)) if missing else {}
        )
        found = [self._kept[item] if item in self._kept else made[item] for item in items]
        for item, tokens in made.items():
            if self._size + len(tokens.ids) <= self.most_cached:
                self._kept[item] = tokens
                self._size += len(tokens.ids)
        return found


class Rows:
    """Documents as rows of ``seq_len`` tokens.

    The documents of an epoch are taken in their order until they fill 128 rows. These documents are a block, which is
    split and packed by itself; its rows are shuffled. So the first step need not wait until all the data are tokenised,
    and a run can go on in the middle of an epoch without that.

    Args:
        documents: what is read.
        encoder: turns it into tokens.
        seq_len: tokens in a row.
        packing: several documents may share a row.
        shuffle_seed: of the orders; None leaves everything in the order of the documents.
    """

    def __init__(
        self, documents: Documents, encoder: Encoder, *, seq_len: int, packing: bool, shuffle_seed: int | None
    ) -> None:
        self.seq_len, self.packing, self.shuffle_seed = seq_len, packing, shuffle_seed
        self._num_items = len(documents)
        self._tokens = TokenCache(documents, encoder)

    def epoch(self, epoch: int, cursor: Cursor = START) -> Iterator[tuple[Row, Cursor]]:
        """The rows from ``cursor`` to the end of an epoch, each with the cursor of the row that follows."""
        order = self._order(epoch)
        item, skipped = cursor
        while item < self._num_items:
            rows, following = self._block(order, item)
            if self.shuffle_seed is not None:
                rows = [rows[row] for row in shuffled(len(rows), self.shuffle_seed, epoch, item + 1)]
            for number, row in enumerate(rows[skipped:], skipped + 1):
                yield row, Cursor(item, number)
            item, skipped = following, 0

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self.shuffle_seed is None:
            return np.arange(self._num_items)
        return shuffled(self._num_items, self.shuffle_seed, epoch, 0)

    def _block(self, order: NDArray[np.int64], first: int) -> tuple[list[Row], int]:
        """The rows of the block that begins at ``first``, and where the next block begins."""
        pieces, filled = [], 0
        while filled < BLOCK_ROWS * self.seq_len and first < self._num_items:
            some = order[first : first + ITEMS_AT_ONCE].tolist()
            for tokens in self._tokens(some):
                found = split(tokens, self.seq_len)
                pieces += found
                filled += sum(piece.length for piece in found)
            first += len(some)
        return pack(pieces, self.seq_len) if self.packing else [(piece,) for piece in pieces], first


def shuffled(count: int, seed: int, *keys: int) -> NDArray[np.int64]:
    """A permutation of ``count`` numbers, drawn from ``seed`` and ``keys``."""
    words = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, *keys]
    # numpy promises that RandomState draws the same in every version, which it does not of newer generators.
    return np.random.RandomState(words).permutation(count)
