"""A language-model head by chunks of tokens: what the loss kernels that never hold all logits have in common."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from kernelkit.kernels.dtypes import as_in_a_product
from kernelkit.kernels.head import Head
from kernelkit.kernels.matmul import add_mm_, mm

PARTS, SMALLEST = 4, 256
"""In how many parts the logits of a chunk are computed, and the tokens below which a product only waits for weights."""

TILE = 128
"""Rows that a product computes at a time, at least: those of a tile that has fewer take as long."""


class ChunkOptions(BaseModel):
    """What a config may set for a Triton loss.

    Attributes:
        chunk_size: tokens whose gradient is multiplied at a time. Each chunk reads and writes the whole float32
            gradient of the head once, so that large chunks are faster. The gradient of a chunk has the dtype of the
            head; its logits are float32, and exist for a quarter of the chunk at a time, but for 256 tokens at least.
            None takes twice the hidden size, with which the gradient of a chunk takes as much memory as that of the
            head, but 1024 tokens at least and 4096 at most. Where no logits exist, it takes four times.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    chunk_size: PositiveInt | None = None

    def tokens(self, weight: Tensor) -> int:
        """The size of a chunk for the head ``weight`` [V, H]."""
        return self.chunk_size or default_chunk(weight, 2)


def default_chunk(weight: Tensor, of_hidden: int) -> int:
    """The size of a chunk for the head ``weight`` [V, H]: so many times H, within limits."""
    return min(max(of_hidden * weight.shape[1], 1024), 4096)


def as_rows(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """``hidden`` [..., H] as [T, H], both in the dtype of autocast where it is on."""
    hidden, weight = as_in_a_product(hidden, weight)
    return hidden.reshape(-1, hidden.shape[-1]), weight


def counting_chunks(labels: Tensor, ignore_index: int, chunk_size: int) -> Iterator[Tensor]:
    """Positions of the labels [T] that count, in chunks that differ little; this waits for the device."""
    positions = (labels != ignore_index).nonzero().flatten()
    yield from torch.split(positions, _even(positions.shape[0], chunk_size))


def busy_chunks(
    labels: Tensor, ignore_index: int, chunk_size: int, *results: Tensor | HeadGradients
) -> Iterator[tuple[slice, Tensor]]:
    """The same, each with the place of its results among the [T], while the device always has something to do.

    Where there may be several, the first is handed out before it is known that so many labels count, and is computed
    while the answer is on its way. If it turns out that fewer do, the ``results`` are zeroed, and those that do come
    again. So this is for kernels that read nothing at a label that is no token.
    """
    counts, tokens = labels != ignore_index, labels.shape[0]
    order = counts.logical_not().byte().argsort(stable=True)
    answer, done = _asked(counts.sum()), 0
    if tokens > chunk_size:
        done = _even(tokens, chunk_size)
        yield slice(0, done), order[:done]
    counted = answer()
    if counted < done:
        for result in results:
            result.zero_()
        done = 0
    rest = order[done:counted]
    for positions in torch.split(rest, _even(counted - done, chunk_size)):
        if positions.shape[0]:
            yield slice(done, done + positions.shape[0]), positions
            done += positions.shape[0]


def _even(tokens: int, chunk_size: int) -> int:
    """The size of chunks that differ little, in whole tiles of a product."""
    chunks = max(1, math.ceil(tokens / chunk_size))
    return min(chunk_size, TILE * math.ceil(tokens / chunks / TILE)) or chunk_size


def _asked(number: Tensor) -> Callable[[], int]:
    """Something to call later for the ``number``, which then waits for nothing that the device was given since."""
    if not number.is_cuda:
        return lambda: int(number)
    known: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]  # untyped in torch
    known.record()

    def answer() -> int:
        with torch.cuda.stream(_stream_of_answers(number.device)):
            known.wait()
            return int(number)

    return answer


@functools.cache
def _stream_of_answers(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # untyped in torch


def part_size(chunk: int) -> int:
    """Tokens of a part of a chunk."""
    return min(chunk, max(SMALLEST, math.ceil(chunk / PARTS)))


def parts(chunk: int) -> Iterator[slice]:
    """The parts of a chunk of so many tokens, of one size up to the last."""
    size = part_size(chunk)
    return (slice(start, min(start + size, chunk)) for start in range(0, chunk, size or 1))


def buffer(like: Tensor, tokens: int, vocabulary: int, dtype: torch.dtype) -> Tensor:
    """Unwritten memory [tokens, V], whose rows begin at multiples of 64 numbers.

    An odd vocabulary would otherwise cost products and kernels their wide loads.
    """
    return like.new_empty(tokens, 64 * math.ceil(vocabulary / 64), dtype=dtype)[:, :vocabulary]


def buffer_bytes(weight: Tensor, tokens: int, heads: int, *, trained: bool) -> int:
    """Bytes of the logits of a part for each of the heads and, if ``trained``, of the gradient of ``tokens``."""
    itemsize = torch.promote_types(weight.dtype, torch.float32).itemsize
    of_logits = heads * part_size(tokens) * itemsize
    return int(weight.shape[0]) * (of_logits + (tokens * weight.element_size() if trained else 0))


def place(of_hidden: Tensor, positions: Tensor, of_rows: Tensor, factors: Tensor | None) -> None:
    """Write ``of_rows`` [N, H], each times its factor, to ``of_hidden`` [T, H] at the ``positions``."""
    of_hidden[positions] = of_rows if factors is None else of_rows * factors[:, None]


class HeadGradients:
    """Adds up the gradients of a head's hidden states [T, H], weight [V, H] and bias [V], chunk by chunk."""

    def __init__(
        self,
        head: Head,
        of_hidden: Tensor,
        of_weight: Tensor,
        of_bias: Tensor,
        wanted: list[bool],
        *,
        place: Callable[[Tensor, Tensor, Tensor, Tensor | None], None] = place,
    ) -> None:
        """Take what the gradients are written to: of at least float32, unwritten, empty where not ``wanted``.

        ``place`` is what does that for the hidden states.
        """
        self.head, self.wanted, self.place = head, wanted, place
        self.of_hidden, self.of_weight, self.of_bias = of_hidden, of_weight, of_bias
        self.zero_()

    def zero_(self) -> None:
        """Begin anew."""
        self.of_hidden.zero_()
        self.of_bias.zero_()
        self.unwritten = True

    def add(self, gradient: Tensor, rows: Tensor, positions: Tensor, factors: Tensor | None = None) -> None:
        """Add those of the ``rows`` [N, H] at ``positions`` [N], from the gradient of their product [N, V].

        Where there are ``factors`` [N], that is ``factors[:, None] * gradient``.
        """
        if rows.shape[0] == 0:
            return
        if self.wanted[0]:
            self.place(self.of_hidden, positions, mm(gradient, self.head.weight), factors)
        if self.wanted[1]:
            scaled = rows if factors is None else torch.mul(rows, factors[:, None], out=torch.empty_like(rows))
            add_mm_(self.of_weight, gradient.t(), scaled, unwritten=self.unwritten)
            self.unwritten = False
        if self.wanted[2] and factors is None:
            self.of_bias += gradient.sum(0, dtype=self.of_bias.dtype)
        elif self.wanted[2]:
            self.of_bias += (gradient * factors[:, None]).sum(0)  # type: ignore[index]  # not None here

    def finish(self) -> None:
        """Write what no chunk has written."""
        if self.unwritten:
            self.of_weight.zero_()
