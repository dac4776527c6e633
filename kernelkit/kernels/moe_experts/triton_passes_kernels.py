"""What the experts do in Triton apart from products: order of blocks, rows of tokens, sums in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernelkit.kernels.triton_launch import blocks_of, power_of_two


@triton.jit
def _schedule(ends_ptr, blocks_ptr, experts, ROWS: tl.constexpr, EXPERTS: tl.constexpr, AT_ONCE: tl.constexpr):
    """The blocks of one expert, after those of the experts before it."""
    mine, expert = tl.program_id(0), tl.arange(0, EXPERTS)
    ends = tl.load(ends_ptr + expert, mask=expert < experts, other=0)
    starts = tl.load(ends_ptr + expert - 1, mask=(expert > 0) & (expert < experts), other=0)
    counts = tl.where(expert < experts, (ends - starts + ROWS - 1) // ROWS, 0)
    before = tl.sum(tl.where(expert < mine, counts, 0), 0)
    count, begin = tl.sum(tl.where(expert == mine, counts, 0), 0), tl.sum(tl.where(expert == mine, starts, 0), 0)
    if mine == 0:
        tl.store(blocks_ptr, tl.sum(counts, 0))
    for start in range(0, count, AT_ONCE):
        block = start + tl.arange(0, AT_ONCE)
        at = blocks_ptr + 2 * (1 + before + block)
        tl.store(at, tl.zeros((AT_ONCE,), tl.int32) + mine, block < count)
        tl.store(at + 1, begin + block * ROWS, block < count)


@triton.jit
def _spread(values_ptr, back_ptr, rows_ptr, width, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    token, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(values_ptr + token * width + columns, mask=columns < width)
    for number in tl.static_range(TOP_K):
        row = tl.load(back_ptr + token * TOP_K + number)
        tl.store(rows_ptr + row * width + columns, values, columns < width)


@triton.jit
def _combine(
    rows_ptr, weights_ptr, index_ptr, back_ptr, output_ptr, experts, hidden,
    TOP_K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of a token's rows, in the order of its choices."""
    token, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for number in tl.static_range(TOP_K):  # all of them under way at once
        choice = token * TOP_K + number
        mask = columns < tl.where(tl.load(index_ptr + choice) < experts, hidden, 0)
        row = tl.load(back_ptr + choice)
        values = tl.load(rows_ptr + row * hidden + columns, mask=mask, other=0.0).to(tl.float32)
        if WEIGHTED:
            values *= tl.load(weights_ptr + choice).to(tl.float32)
        total += values
    tl.store(output_ptr + token * hidden + columns, total.to(output_ptr.dtype.element_ty), columns < hidden)


@triton.jit
def _of_routing(
    gradient_ptr, bias_ptr, shares_ptr, index_ptr, back_ptr, output_ptr, experts, choices, top_k, hidden,
    BIASED: tl.constexpr, CHOICES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of a choice's weight: its row's share, and the token's gradient times the expert's bias."""
    choice = (tl.program_id(0) * CHOICES + tl.arange(0, CHOICES)).to(tl.int64)
    expert = tl.load(index_ptr + choice, mask=choice < choices, other=experts)
    present = expert < experts
    row = tl.load(back_ptr + choice, mask=present, other=0)
    total = tl.load(shares_ptr + row, mask=present, other=0.0)
    if BIASED:
        for start in range(0, hidden, BLOCK):
            at = (start + tl.arange(0, BLOCK))[None, :]
            mask = present[:, None] & (at < hidden)
            token = (choice // top_k)[:, None]
            gradient = tl.load(gradient_ptr + token * hidden + at, mask=mask, other=0.0).to(tl.float32)
            bias = tl.load(bias_ptr + expert[:, None] * hidden + at, mask=mask, other=0.0).to(tl.float32)
            total += tl.sum(gradient * bias, 1)
    tl.store(output_ptr + choice, total.to(output_ptr.dtype.element_ty), choice < choices)


@triton.jit
def _of_bias(
    rows_ptr, weights_ptr, order_ptr, ends_ptr, output_ptr, width,
    TOP_K: tl.constexpr, ROUTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The sum of an expert's rows; ROUTED: of its tokens', each times its routing weight."""
    expert, columns = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends_ptr + expert)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        choices = tl.load(order_ptr + rows, mask=rows < end, other=0)
        at = choices // TOP_K if ROUTED else rows
        mask = (rows < end)[:, None] & (columns < width)[None, :]
        values = tl.load(rows_ptr + at[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        if ROUTED:
            values *= tl.load(weights_ptr + choices, mask=rows < end, other=0.0).to(tl.float32)[:, None]
        total += values
    at = expert.to(tl.int64) * width + columns
    tl.store(output_ptr + at, tl.sum(total, 0).to(output_ptr.dtype.element_ty), columns < width)


def schedule(ends: Tensor, choices: int, rows: int) -> Tensor:
    """[1 + blocks, 2] int32: how many blocks of ``rows`` there are, then the expert and the first row of each."""
    experts = len(ends)
    blocks = ends.new_empty(1 + choices // rows + min(experts, choices), 2)
    _schedule[(experts,)](ends, blocks, experts, ROWS=rows, EXPERTS=power_of_two(experts), AT_ONCE=64, num_warps=4)
    return blocks


def spread(values: Tensor, back: Tensor, rows: Tensor) -> None:
    """Write the values [T, H] of each token to its ``rows`` [T * K, H].

    Each value is read once; a gather in the order of the rows would read those of a token at K distant times.
    """
    (tokens, width), block = values.shape, min(1024, power_of_two(values.shape[1]))
    grid = tokens, blocks_of(block, width)
    _spread[grid](values, back, rows, width, TOP_K=len(rows) // tokens, BLOCK=block, num_warps=4)


def combine(rows: Tensor, weights: Tensor | None, index: Tensor, back: Tensor, experts: int, output: Tensor) -> None:
    """Write to ``output`` [T, H] the sum of the ``rows`` [T * K, H] of each token's choices, each times its weight."""
    (tokens, hidden), block = output.shape, min(1024, power_of_two(output.shape[1]))
    _combine[(tokens, blocks_of(block, hidden))](
        rows, weights, index, back, output, experts, hidden,
        TOP_K=index.shape[1], WEIGHTED=weights is not None, BLOCK=block, num_warps=4,
    )  # fmt: skip


def of_routing(
    gradient: Tensor, bias: Tensor | None, shares: Tensor, index: Tensor, back: Tensor, experts: int, output: Tensor
) -> None:
    """Write the gradient of the routing weights [T, K], from each row's share of it and from the bias."""
    choices, hidden = index.numel(), gradient.shape[1]
    at_once = 128 if bias is None else 16
    _of_routing[(blocks_of(at_once, choices),)](
        gradient, bias, shares, index, back, output, experts, choices, index.shape[1], hidden,
        BIASED=bias is not None, CHOICES=at_once, BLOCK=min(256, power_of_two(hidden)), num_warps=4,
    )  # fmt: skip


def of_bias(rows: Tensor, weights: Tensor | None, order: Tensor, ends: Tensor, output: Tensor) -> None:
    """Write the sum of each expert's rows [E, I]; with ``weights`` [T, K], of its tokens' rows, weighted."""
    _of_bias[(len(ends), blocks_of(64, rows.shape[1]))](
        rows, weights, order, ends, output, rows.shape[1],
        TOP_K=1 if weights is None else weights.shape[1], ROUTED=weights is not None, ROWS=32, COLUMNS=64, num_warps=4,
    )  # fmt: skip
