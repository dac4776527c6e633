"""The grouped products of the experts in Triton, and what happens to a product before it is stored.

A program takes tile after tile, in an order in which programs that run together share weights. ``blocks_ptr``, which
``triton_passes_kernels.schedule`` writes, says how many blocks of rows there are, and the expert and first row of each.
With ``TMA``, which Hopper and later GPUs have, rows and weights are tensor descriptors, which the device copies by
itself; without it they are loaded through pointers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.tools.ragged_tma import load_ragged

from kernelkit.kernels.moe_experts.triton_activation_kernels import clamped, paired, sigmoid


@triton.jit
def _place(tile, blocks, columns, GROUP: tl.constexpr):
    """The block of rows and of columns of a tile: GROUP blocks take a column together, and share its weights."""
    group = tile // (GROUP * columns)
    size = tl.minimum(GROUP, blocks - group * GROUP)
    within = tile % (GROUP * columns)
    return group * GROUP + within % size, within // size


@triton.jit
def _rows_of(block, blocks_ptr, ends_ptr, ROWS: tl.constexpr):
    """The expert of a block, its first row, its rows, and which of them there are."""
    expert, first = tl.load(blocks_ptr + 2 * block + 2), tl.load(blocks_ptr + 2 * block + 3)
    rows = first + tl.arange(0, ROWS)
    return expert, first, rows, rows < tl.load(ends_ptr + expert)


@triton.jit
def _left(rows, at, first, start, length, TMA: tl.constexpr, DEPTH: tl.constexpr):
    """[ROWS, DEPTH] of ``rows`` [S, length] from ``first`` on. ``at``: their numbers, 0 beyond the expert's."""
    if TMA:
        tile = rows.load([first, start])
    else:
        depth = start + tl.arange(0, DEPTH)
        tile = tl.load(rows + at[:, None] * length + depth[None, :], mask=(depth < length)[None, :], other=0.0)
    return tile


@triton.jit
def _right(
    weight, expert, column, start, width, length, step_expert, step_column, step,
    TMA: tl.constexpr, ALONG: tl.constexpr, HALVES: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """[DEPTH, COLUMNS] of an expert's weight; ALONG: whose memory goes along the depth.

    HALVES: a half of the columns is from ``column`` on, and the other one from there in the weight's second half.
    """
    if TMA and HALVES:
        tile = tl.reshape(weight.load([expert, 0, column, start]), (COLUMNS, DEPTH)).T
    elif TMA and ALONG:
        tile = tl.reshape(weight.load([expert, column, start]), (COLUMNS, DEPTH)).T
    elif TMA:
        tile = tl.reshape(weight.load([expert, start, column]), (DEPTH, COLUMNS))
    else:
        depth, columns = start + tl.arange(0, DEPTH), tl.arange(0, COLUMNS)
        if HALVES:
            there = column + columns % (COLUMNS // 2) < width // 2
            columns = column + columns % (COLUMNS // 2) + columns // (COLUMNS // 2) * (width // 2)
        else:
            columns += column
            there = columns < width
        at = depth.to(tl.int64)[:, None] * step + columns.to(tl.int64)[None, :] * step_column
        mask = (depth < length)[:, None] & there[None, :]
        tile = tl.load(weight + expert.to(tl.int64) * step_expert + at, mask=mask, other=0.0)
    return tile


@triton.jit
def _product(
    left, rows, there, first, weight, expert, column, width, length, step_expert, step_column, step,
    TMA: tl.constexpr, ALONG: tl.constexpr, HALVES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """[ROWS, COLUMNS] in float32, from ``column`` on."""
    total, at = tl.zeros((ROWS, COLUMNS), tl.float32), tl.where(there, rows, 0).to(tl.int64)
    for start in range(0, length, DEPTH):
        a = _left(left, at, first, start, length, TMA, DEPTH)
        b = _right(
            weight, expert, column, start, width, length, step_expert, step_column, step,
            TMA, ALONG, HALVES, COLUMNS, DEPTH,
        )  # fmt: skip
        total = tl.dot(a, b, total, input_precision="ieee")
    return total


@triton.jit
def _halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Its left and its right half; no thread gives anything to another."""
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def _quarters(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    left, right = _halves(tile, ROWS, COLUMNS)
    first, second = _halves(left, ROWS, COLUMNS // 2)
    third, fourth = _halves(right, ROWS, COLUMNS // 2)
    return first, second, third, fourth


@triton.jit
def up(
    left, weight, bias_ptr, blocks_ptr, ends_ptr, gate_up_ptr, activated_ptr,
    hidden, width, step_expert, step_column, step, alpha, limit, programs,
    TURNED: tl.constexpr, TMA: tl.constexpr, ALONG: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Gate and up of each row, half of the COLUMNS each, and the activation. TURNED: in turns, as gpt-oss has them."""
    half: tl.constexpr = COLUMNS // 2
    dtype: tl.constexpr = gate_up_ptr.dtype.element_ty
    blocks, wide = tl.load(blocks_ptr), tl.cdiv(width, half)
    for tile in tl.range(tl.program_id(0), blocks * wide, programs, flatten=TMA):
        block, column_block = _place(tile, blocks, wide, GROUP)
        expert, first, rows, there = _rows_of(block, blocks_ptr, ends_ptr, ROWS)
        both = _product(
            left, rows, there, first, weight, expert, column_block * (COLUMNS if TURNED else half), 2 * width, hidden,
            step_expert, step_column, step, TMA, ALONG, not TURNED, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        columns = column_block * half + tl.arange(0, half)
        mask = there[:, None] & (columns < width)[None, :]
        rows = rows.to(tl.int64)[:, None]
        if TURNED:
            two = column_block * COLUMNS + tl.arange(0, COLUMNS)
            bias = tl.load(bias_ptr + expert * 2 * width + two, mask=two < 2 * width, other=0.0)
            gate, up = tl.split(tl.reshape(both + bias.to(tl.float32)[None, :], (ROWS, half, 2)))
            pairs = gate_up_ptr.to(tl.pointer_type(tl.int32)) + rows * width + columns[None, :]
            tl.store(pairs, paired(gate.to(dtype), up.to(dtype)), mask)
            gate, up = clamped(gate, up, limit)
            activated = up * gate * sigmoid(gate * alpha)
        else:
            gate, up = _halves(both, ROWS, COLUMNS)
            tl.store(gate_up_ptr + rows * (2 * width) + columns[None, :], gate.to(dtype), mask)
            tl.store(gate_up_ptr + rows * (2 * width) + (width + columns)[None, :], up.to(dtype), mask)
            activated = up * gate * sigmoid(gate)
        tl.store(activated_ptr + rows * width + columns[None, :], activated.to(dtype), mask)


@triton.jit
def _store(output_ptr, tile, there, columns, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store ``tile`` at [ROWS, 1] pointers, from the column ``columns`` on; in parts, which share one buffer."""
    parts = _quarters(tile, ROWS, COLUMNS)
    for part in tl.static_range(4):
        across = columns + part * (COLUMNS // 4) + tl.arange(0, COLUMNS // 4)
        mask = there[:, None] & (across < width)[None, :]
        tl.store(output_ptr + across[None, :], parts[part].to(output_ptr.dtype.element_ty), mask)


@triton.jit
def down(
    left, weight, bias_ptr, blocks_ptr, ends_ptr, output_ptr,
    length, width, step_expert, step_column, step, programs,
    BIASED: tl.constexpr, TMA: tl.constexpr, ALONG: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The product of each row [length] with its expert's weight to [width], and its bias."""
    blocks, wide = tl.load(blocks_ptr), tl.cdiv(width, COLUMNS)
    for tile in tl.range(tl.program_id(0), blocks * wide, programs, flatten=TMA):
        block, column_block = _place(tile, blocks, wide, GROUP)
        expert, first, rows, there = _rows_of(block, blocks_ptr, ends_ptr, ROWS)
        total = _product(
            left, rows, there, first, weight, expert, column_block * COLUMNS, width, length,
            step_expert, step_column, step, TMA, ALONG, False, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        if BIASED:
            columns = column_block * COLUMNS + tl.arange(0, COLUMNS)
            bias = tl.load(bias_ptr + expert * width + columns, mask=columns < width, other=0.0)
            total += bias.to(tl.float32)[None, :]
        output = output_ptr + rows.to(tl.int64)[:, None] * width
        _store(output, total, there, column_block * COLUMNS, width, ROWS, COLUMNS)


@triton.jit
def _of_expert(
    rows, begin, end, start, column, width, TMA: tl.constexpr, DEPTH: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """[DEPTH, COLUMNS] from the row ``start`` on, zero from ``end`` on: what lies there may be no number."""
    if TMA:
        tile = load_ragged(rows, begin, end - begin, [start - begin, column])
    else:
        at, columns = start + tl.arange(0, DEPTH), column + tl.arange(0, COLUMNS)
        mask = (at < end)[:, None] & (columns < width)[None, :]
        tile = tl.load(rows + at.to(tl.int64)[:, None] * width + columns[None, :], mask=mask, other=0.0)
    return tile


@triton.jit
def _ends_of(expert, ends_ptr):
    """The first row of an expert, and the one after its last."""
    return tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0), tl.load(ends_ptr + expert)


@triton.jit
def _steps(tiles, each, ends_ptr, programs, DEPTH: tl.constexpr):
    """How many blocks of rows this program multiplies in all of its tiles; one of zeros where an expert has none."""
    steps = 0
    for start in range(tl.program_id(0), tiles, 128 * programs):
        tile = start + tl.arange(0, 128) * programs
        begin, end = _ends_of(tl.minimum(tile, tiles - 1) // each, ends_ptr)
        steps += tl.sum(tl.where(tile < tiles, tl.maximum(tl.cdiv(end - begin, DEPTH), 1), 0))
    return steps


@triton.jit
def of_weight(
    left, right, ends_ptr, output_ptr, experts, height, width, programs,
    TMA: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """[experts, height, width]: the sum over an expert's rows of left [height] times right [width].

    One loop goes through the blocks of rows of all tiles, so that the next tile's are loaded while one is stored.
    Triton makes such a loop of two by itself only where all tiles have as many.
    """
    high, each = tl.cdiv(height, ROWS), tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    tile = tl.program_id(0) - programs
    expert, row, column, begin, end, start = tile, 0, 0, 0, 0, 0
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(_steps(experts * each, each, ends_ptr, programs, DEPTH)):
        start += DEPTH
        if start >= end:
            tile += programs
            expert = tile // each
            row, column = (tile % each % high) * ROWS, (tile % each // high) * COLUMNS
            begin, end = _ends_of(expert, ends_ptr)
            start = begin
        a = _of_expert(left, begin, end, start, row, height, TMA, DEPTH, ROWS)
        b = _of_expert(right, begin, end, start, column, width, TMA, DEPTH, COLUMNS)
        total = tl.dot(a.T, b, total, input_precision="ieee")
        if start + DEPTH >= end:
            rows = row + tl.arange(0, ROWS)
            output = output_ptr + (expert.to(tl.int64) * height + rows)[:, None] * width
            _store(output, total, rows < height, column, width, ROWS, COLUMNS)
            total = tl.zeros((ROWS, COLUMNS), tl.float32)
