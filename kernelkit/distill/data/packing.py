"""From documents of any length to rows of one length."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kernelkit.distill.data.encoding import Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A stretch of a document that fits into a row.

    Attributes:
        tokens: the document.
        start, stop: the stretch.
        num_targets: how many of its tokens are predicted. Its first is not: nothing precedes it.
    """

    tokens: Tokens
    start: int
    stop: int
    num_targets: int

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return self.stop - self.start


Row = tuple[Piece, ...]
"""What one row holds, from left to right."""


def split(tokens: Tokens, seq_len: int) -> list[Piece]:
    """The pieces of a document.

    Each begins with the last token of the one before, so that every token but the document's first is predicted in
    exactly one piece. Pieces that predict nothing are left out.
    """
    length = len(tokens.ids)
    pieces = []
    for start in range(0, length - 1, seq_len - 1):
        stop = min(start + seq_len, length)
        learnt = tokens.learnt
        count = stop - start - 1 if learnt is None else int(np.count_nonzero(learnt[start + 1 : stop]))
        if count:
            pieces.append(Piece(tokens, start, stop, count))
    return pieces


def pack(pieces: Iterable[Piece], seq_len: int) -> list[Row]:
    """Put pieces into as few rows as best-fit decreasing finds, none of them cut.

    The longest piece comes first, and each goes into the fullest row that has room for it. In a row, pieces stand in
    their original order; rows stand in the order of their first pieces.
    """
    numbered = list(enumerate(pieces))
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # free tokens and number of each row that is not full, sorted
    for number, piece in sorted(numbered, key=lambda item: -item[1].length):
        length = piece.length
        at = bisect_left(room, (length, -1))
        free, row = room.pop(at) if at < len(room) else (seq_len, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(number)
        # A piece of one token predicts nothing, so that a row needs two free tokens to be of use.
        if free - length > 1:
            insort(room, (free - length, row))
    return [tuple(numbered[number][1] for number in row) for row in sorted(map(sorted, rows))]
