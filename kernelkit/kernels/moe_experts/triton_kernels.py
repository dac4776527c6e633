"""The experts in Triton: what is around the grouped products happens inside them.

The first product gathers its tokens as it loads them and applies the activation to what it accumulated. The backward of
the second computes the activation again from gate and up, and gives its gradient, that of the routing weights and the
weighted activation in one pass. Sums over a token's choices and over blocks are taken in a fixed order.

Gate and up of a row are kept in turns, as gpt-oss has them in its weights too: the two columns of a pair are then in
one thread. Where the weights hold all gates before all ups, ``_position`` finds their columns and rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelkit.kernels.dtypes import as_in_a_product
from kernelkit.kernels.lean_op import differentiable_op, lean_op
from kernelkit.kernels.routing import route
from kernelkit.kernels.swiglu_mlp.eager import ALPHA, LIMIT
from kernelkit.kernels.triton_launch import blocks_of, empty_like, power_of_two, processors, shared_memory

GROUP = 8
"""Blocks of rows that go through all columns of a weight together."""


@triton.jit
def _position(column, half, HALVES: tl.constexpr):
    """Where a weight of gates before ups has the column that is the ``column``-th in turns."""
    return (column % 2) * half + column // 2 if HALVES else column


@triton.jit
def _blocks_until(ends_ptr, experts, EXPERTS: tl.constexpr, ROWS: tl.constexpr):
    """The end of each expert's rows, and how many blocks of rows there are up to it."""
    expert = tl.arange(0, EXPERTS)
    ends = tl.load(ends_ptr + expert, mask=expert < experts, other=0)
    starts = tl.load(ends_ptr + expert - 1, mask=(expert > 0) & (expert < experts), other=0)
    return ends, tl.cumsum(tl.where(expert < experts, (ends - starts + ROWS - 1) // ROWS, 0), 0)


@triton.jit
def _place(tile, blocks, columns, GROUP: tl.constexpr):
    """The block of rows and of columns of a tile: GROUP blocks take a column together, and share its weights."""
    group = tile // (GROUP * columns)
    size = tl.minimum(GROUP, blocks - group * GROUP)
    within = tile % (GROUP * columns)
    return group * GROUP + within % size, within // size


@triton.jit
def _rows_of(block, ends, until, ends_ptr, ROWS: tl.constexpr):
    """The expert of a block, its rows, and which of them there are."""
    before = until <= block
    expert = tl.sum(before.to(tl.int32), 0)
    first = block - tl.max(tl.where(before, until, 0), 0)
    rows = tl.max(tl.where(before, ends, 0), 0) + first * ROWS + tl.arange(0, ROWS)
    return expert, rows, rows < tl.load(ends_ptr + expert)


@triton.jit
def _product(
    left, there, right, columns_there, length, half, step,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """Of rows at the pointers ``left`` and columns at ``right``, whose next element is ``step`` further."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, length, DEPTH):
        at = start + tl.arange(0, DEPTH)
        a = tl.load(left[:, None] + at[None, :], mask=there[:, None] & (at < length)[None, :], other=0.0)
        offsets = _position(at, half, HALVES).to(tl.int64) * step
        b = tl.load(right[None, :] + offsets[:, None], mask=(at < length)[:, None] & columns_there[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    return total


@triton.jit
def _clamp(gate, up, limit):
    return tl.minimum(gate, limit), tl.minimum(tl.maximum(up, -limit), limit) + 1.0


@triton.jit
def _pair(both, dtype: tl.constexpr):
    """A gate and its up from the 32 bits that they take together: a quarter of the registers of two loads."""
    gate, up = both.to(tl.int16), (both >> 16).to(tl.int16)
    return gate.to(dtype, bitcast=True).to(tl.float32), up.to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def _paired(gate, up):
    low = gate.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (up.to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def _up(
    states_ptr, weight_ptr, bias_ptr, order_ptr, ends_ptr, gate_up_ptr, activated_ptr,
    experts, top_k, hidden, width, step_expert, step_column, step, alpha, limit, programs,
    CLAMPED: tl.constexpr, EXPERTS: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Gate and up of each row, in turns, and the activation."""
    ends, until = _blocks_until(ends_ptr, experts, EXPERTS, ROWS)
    blocks, wide = tl.max(until, 0), tl.cdiv(2 * width, COLUMNS)
    for tile in range(tl.program_id(0), blocks * wide, programs):
        block, column_block = _place(tile, blocks, wide, GROUP)
        expert, rows, there = _rows_of(block, ends, until, ends_ptr, ROWS)
        rows = rows.to(tl.int64)
        columns = column_block * COLUMNS + tl.arange(0, COLUMNS)
        tokens = tl.load(order_ptr + rows, mask=there, other=0) // top_k
        weight = weight_ptr + expert.to(tl.int64) * step_expert
        weight += _position(columns, width, not CLAMPED).to(tl.int64) * step_column
        total = _product(
            states_ptr + tokens * hidden, there, weight, columns < 2 * width, hidden, 0, step,
            ROWS, COLUMNS, DEPTH, False,
        )  # fmt: skip
        if CLAMPED:
            bias = tl.load(bias_ptr + expert * 2 * width + columns, mask=columns < 2 * width, other=0.0)
            total += bias.to(tl.float32)[None, :]
        mask = there[:, None] & (columns < 2 * width)[None, :]
        tl.store(
            gate_up_ptr + rows[:, None] * (2 * width) + columns[None, :], total.to(gate_up_ptr.dtype.element_ty), mask
        )
        gate, up = tl.split(tl.reshape(total, (ROWS, COLUMNS // 2, 2)))
        if CLAMPED:
            gate, up = _clamp(gate, up, limit)
            activated = up * gate * tl.sigmoid(gate * alpha)
        else:
            activated = up * gate * tl.sigmoid(gate)
        pairs = column_block * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
        tl.store(
            activated_ptr + rows[:, None] * width + pairs[None, :], activated.to(activated_ptr.dtype.element_ty),
            there[:, None] & (pairs < width)[None, :],
        )  # fmt: skip


@triton.jit
def _down(
    rows_ptr, weight_ptr, bias_ptr, ends_ptr, output_ptr,
    experts, length, half, width, step_expert, step_column, step, programs,
    BIASED: tl.constexpr, HALVES: tl.constexpr, EXPERTS: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The product of each row [length] with its expert's weight [width, length], and its bias."""
    ends, until = _blocks_until(ends_ptr, experts, EXPERTS, ROWS)
    blocks, wide = tl.max(until, 0), tl.cdiv(width, COLUMNS)
    for tile in range(tl.program_id(0), blocks * wide, programs):
        block, column_block = _place(tile, blocks, wide, GROUP)
        expert, rows, there = _rows_of(block, ends, until, ends_ptr, ROWS)
        rows = rows.to(tl.int64)
        columns = column_block * COLUMNS + tl.arange(0, COLUMNS)
        weight = weight_ptr + expert.to(tl.int64) * step_expert + columns.to(tl.int64) * step_column
        total = _product(
            rows_ptr + rows * length, there, weight, columns < width, length, half, step, ROWS, COLUMNS, DEPTH, HALVES
        )
        if BIASED:
            bias = tl.load(bias_ptr + expert * width + columns, mask=columns < width, other=0.0)
            total += bias.to(tl.float32)[None, :]
        mask = there[:, None] & (columns < width)[None, :]
        tl.store(output_ptr + rows[:, None] * width + columns[None, :], total.to(output_ptr.dtype.element_ty), mask)


@triton.jit
def _gate_backward(
    of_activated, routed, rows, there, columns, gate_up_ptr, of_gate_up_ptr, activated_ptr, width, alpha, limit,
    CLAMPED: tl.constexpr,
):  # fmt: skip
    """Store what follows from some columns of the activation's gradient; return their share of the weights'."""
    dtype: tl.constexpr = gate_up_ptr.dtype.element_ty
    mask = there[:, None] & (columns < width)[None, :]
    at = rows[:, None] * width + columns[None, :]
    gate, up = _pair(tl.load(gate_up_ptr.to(tl.pointer_type(tl.int32)) + at, mask=mask, other=0), dtype)
    free_gate, free_up = gate, up
    if CLAMPED:
        gate, up = _clamp(gate, up, limit)
        share = tl.sigmoid(gate * alpha)
        slope = share * (1.0 + alpha * gate * (1.0 - share))
    else:
        share = tl.sigmoid(gate)
        slope = share * (1.0 + gate * (1.0 - share))
    activated = up * gate * share
    tl.store(activated_ptr + at, (activated * routed[:, None]).to(dtype), mask)
    of_routed = of_activated * routed[:, None]
    of_gate, of_up = of_routed * up * slope, of_routed * gate * share
    if CLAMPED:
        of_gate = tl.where(free_gate > limit, 0.0, of_gate)
        of_up = tl.where((free_up > limit) | (free_up < -limit), 0.0, of_up)
    tl.store(of_gate_up_ptr.to(tl.pointer_type(tl.int32)) + at, _paired(of_gate.to(dtype), of_up.to(dtype)), mask)
    return tl.sum(of_activated * activated, 1)


@triton.jit
def _down_backward(
    gradient_ptr, weight_ptr, weights_ptr, gate_up_ptr, order_ptr, ends_ptr,
    of_gate_up_ptr, activated_ptr, shares_ptr,
    experts, top_k, hidden, width, step_expert, step_column, step, alpha, limit, programs,
    CLAMPED: tl.constexpr, EXPERTS: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The gradient of gate and up, the weighted activation, and each block's share of the routing weights' gradient."""
    ends, until = _blocks_until(ends_ptr, experts, EXPERTS, ROWS)
    blocks, wide = tl.max(until, 0), tl.cdiv(width, COLUMNS)
    for tile in range(tl.program_id(0), blocks * wide, programs):
        block, column_block = _place(tile, blocks, wide, GROUP)
        expert, rows, there = _rows_of(block, ends, until, ends_ptr, ROWS)
        rows = rows.to(tl.int64)
        columns = column_block * COLUMNS + tl.arange(0, COLUMNS)
        choices = tl.load(order_ptr + rows, mask=there, other=0)
        weight = weight_ptr + expert.to(tl.int64) * step_expert + columns.to(tl.int64) * step_column
        of_activated = _product(
            gradient_ptr + (choices // top_k) * hidden, there, weight, columns < width, hidden, 0, step,
            ROWS, COLUMNS, DEPTH, False,
        )  # fmt: skip
        routed = tl.load(weights_ptr + choices, mask=there, other=0.0).to(tl.float32)
        share = tl.zeros((ROWS,), tl.float32)
        # A quarter at a time, so that the rest of what it takes does not have to be in registers too.
        halves = tl.split(tl.permute(tl.reshape(of_activated, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        for half in tl.static_range(2):
            parts = tl.split(tl.permute(tl.reshape(halves[half], (ROWS, 2, COLUMNS // 4)), (0, 2, 1)))
            for part in tl.static_range(2):
                columns = column_block * COLUMNS + (2 * half + part) * (COLUMNS // 4) + tl.arange(0, COLUMNS // 4)
                share += _gate_backward(
                    parts[part], routed, rows, there, columns, gate_up_ptr, of_gate_up_ptr, activated_ptr, width,
                    alpha, limit, CLAMPED,
                )  # fmt: skip
        tl.store(shares_ptr + rows * wide + column_block, share, there)


@triton.jit
def _of_weight(
    left_ptr, right_ptr, order_ptr, ends_ptr, output_ptr,
    experts, top_k, height, width, half, step_expert, step_row, step_column, programs,
    GATHERED: tl.constexpr, HALVES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The sum over an expert's rows of left [height] times right [width], one of which is GATHERED by token."""
    high, wide = tl.cdiv(height, ROWS), tl.cdiv(width, COLUMNS)
    for tile in range(tl.program_id(0), experts * high * wide, programs):
        expert, within = tile // (high * wide), tile % (high * wide)
        up = (within % high) * ROWS + tl.arange(0, ROWS)
        across = (within // high) * COLUMNS + tl.arange(0, COLUMNS)
        begin = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0)
        end = tl.load(ends_ptr + expert)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(begin, end, DEPTH):
            rows = (start + tl.arange(0, DEPTH)).to(tl.int64)
            there = rows < end
            tokens = tl.load(order_ptr + rows, mask=there, other=0) // top_k
            lefts, rights = rows, rows
            if GATHERED == "left":
                lefts = tokens
            else:
                rights = tokens
            a = tl.load(
                left_ptr + lefts[None, :] * height + up[:, None], (up < height)[:, None] & there[None, :], other=0.0
            )
            b = tl.load(
                right_ptr + rights[:, None] * width + across[None, :],
                there[:, None] & (across < width)[None, :], other=0.0,
            )  # fmt: skip
            total = tl.dot(a, b, total, input_precision="ieee")
        at = _position(up, half, HALVES).to(tl.int64)[:, None] * step_row + across[None, :] * step_column
        tl.store(
            output_ptr + expert.to(tl.int64) * step_expert + at, total.to(output_ptr.dtype.element_ty),
            (up < height)[:, None] & (across < width)[None, :],
        )  # fmt: skip


@triton.jit
def _of_bias(
    rows_ptr, weights_ptr, order_ptr, ends_ptr, output_ptr, top_k, width,
    ROUTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The sum of an expert's rows; ROUTED: of its tokens', each times its routing weight."""
    expert, columns = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends_ptr + expert)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        choices = tl.load(order_ptr + rows, mask=rows < end, other=0)
        at = choices // top_k if ROUTED else rows
        mask = (rows < end)[:, None] & (columns < width)[None, :]
        values = tl.load(rows_ptr + at[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        if ROUTED:
            values *= tl.load(weights_ptr + choices, mask=rows < end, other=0.0).to(tl.float32)[:, None]
        total += values
    at = expert.to(tl.int64) * width + columns
    tl.store(output_ptr + at, tl.sum(total, 0).to(output_ptr.dtype.element_ty), columns < width)


@triton.jit
def _of_routing(
    gradient_ptr, bias_ptr, shares_ptr, index_ptr, back_ptr, output_ptr, experts, top_k, hidden, shares,
    BIASED: tl.constexpr, SHARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of a choice's weight: its blocks' shares, and the token's gradient times the expert's bias."""
    choice = tl.program_id(0).to(tl.int64)
    expert = tl.load(index_ptr + choice)
    row, share = tl.load(back_ptr + choice), tl.arange(0, SHARES)
    mask = share < tl.where(expert < experts, shares, 0)
    total = tl.sum(tl.load(shares_ptr + row * shares + share, mask=mask, other=0.0), 0)
    if BIASED:
        for start in range(0, hidden, BLOCK):
            at = start + tl.arange(0, BLOCK)
            present = at < tl.where(expert < experts, hidden, 0)
            gradient = tl.load(gradient_ptr + (choice // top_k) * hidden + at, mask=present, other=0.0).to(tl.float32)
            bias = tl.load(bias_ptr + expert * hidden + at, mask=present, other=0.0).to(tl.float32)
            total += tl.sum(gradient * bias, 0)
    tl.store(output_ptr + choice, total.to(output_ptr.dtype.element_ty))


@triton.jit
def _combine(
    rows_ptr, weights_ptr, index_ptr, back_ptr, output_ptr, experts, top_k, hidden,
    WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of a token's rows, in the order of its choices."""
    token, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for number in range(top_k):
        choice = token * top_k + number
        mask = columns < tl.where(tl.load(index_ptr + choice) < experts, hidden, 0)
        row = tl.load(back_ptr + choice)
        values = tl.load(rows_ptr + row * hidden + columns, mask=mask, other=0.0).to(tl.float32)
        if WEIGHTED:
            values *= tl.load(weights_ptr + choice).to(tl.float32)
        total += values
    tl.store(output_ptr + token * hidden + columns, total.to(output_ptr.dtype.element_ty), columns < hidden)


def _tiles(states: Tensor, rows: int, columns: int, depth: int, before: int = 0) -> dict[str, int]:
    """Block sizes, warps and stages for so many ``rows``, ``columns`` and ``depth``: the largest not half empty.

    As many stages as the device's memory for a program holds, up to four, and those of the loads that come before.
    """
    rows, columns = (max(16, min(128, power_of_two(rows))), max(32, min(256, power_of_two(columns))))
    depth = max(16, min(64, power_of_two(depth)))
    stages = shared_memory(states) // ((rows + columns) * depth * states.element_size())
    warps = 8 if rows * columns >= 128 * 128 else 4
    return {
        "ROWS": rows, "COLUMNS": columns, "DEPTH": depth,
        "num_warps": warps, "num_stages": before + max(1, min(4, stages)),
    }  # fmt: skip


def _grid(states: Tensor) -> dict[str, Any]:
    return {"programs": processors(states), "GROUP": GROUP}


def _strides(weight: Tensor, turned: bool) -> tuple[int, int, int]:
    """From one expert to the next, from one column of its product, and from one element of a row."""
    return (weight.stride(0), weight.stride(2), weight.stride(1)) if turned else weight.stride()  # type: ignore[return-value]  # of three dimensions


def _empty_outputs(
    states: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor, gate_up_bias: Tensor | None,
    down_bias: Tensor | None, index: Tensor, order: Tensor, back: Tensor, ends: Tensor, clamp: list[float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    width = down_proj.shape[1 if clamp else 2]
    return empty_like(states), states.new_empty(index.numel(), 2 * width)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:-1], output[1])
    ctx.clamp = inputs[-1]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, gradient: Tensor | None, _: Any) -> tuple[Any, ...]:
    if gradient is None:
        return (None,) * 11
    found = _gradients(gradient, *ctx.saved_tensors, ctx.clamp)
    biases = found[4:] if ctx.clamp else (None, None)
    return *found[:4], *biases, None, None, None, None, None


@differentiable_op("triton_moe_experts", fake=_empty_outputs, save=_save, differentiate=_differentiate)
def _experts(
    states: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor, gate_up_bias: Tensor | None,
    down_bias: Tensor | None, index: Tensor, order: Tensor, back: Tensor, ends: Tensor, clamp: list[float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output [T, H], and gate and up [T * K, 2I] of each row, in turns."""
    output, gate_up = _empty_outputs(
        states, weights, gate_up_proj, down_proj, gate_up_bias, down_bias, index, order, back, ends, clamp
    )
    if not len(states):
        return output, gate_up
    (choices, both), (hidden, top_k, experts) = gate_up.shape, (states.shape[1], index.shape[1], len(ends))
    turned, width, (alpha, limit) = bool(clamp), both // 2, clamp or (0.0, 0.0)
    states, activated = states.contiguous(), states.new_empty(choices, width)
    rows, common = states.new_empty(choices, hidden), {"EXPERTS": power_of_two(experts), **_grid(states)}
    crowd = choices // experts
    _up[(processors(states),)](
        states, gate_up_proj, _dense(gate_up_bias), order, ends, gate_up, activated, experts, top_k, hidden, width,
        *_strides(gate_up_proj, turned), alpha, limit, CLAMPED=turned, **common,
        **_tiles(states, crowd, both, hidden),
    )  # fmt: skip
    _down[(processors(states),)](
        activated, down_proj, _dense(down_bias), ends, rows, experts, width, 0, hidden,
        *_strides(down_proj, turned), BIASED=turned, HALVES=False, **common, **_tiles(states, crowd, hidden, width),
    )  # fmt: skip
    _combined(rows, weights, index, back, experts, output)
    return output, gate_up


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _combined(rows: Tensor, weights: Tensor | None, index: Tensor, back: Tensor, experts: int, output: Tensor) -> None:
    (tokens, hidden), block = output.shape, min(1024, power_of_two(output.shape[1]))
    _combine[(tokens, blocks_of(block, hidden))](
        rows, _dense(weights), index.contiguous(), back, output, experts, index.shape[1], hidden,
        WEIGHTED=weights is not None, BLOCK=block, num_warps=4,
    )  # fmt: skip


def _empty_gradients(
    gradient: Tensor, states: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor,
    gate_up_bias: Tensor | None, down_bias: Tensor | None, index: Tensor, order: Tensor, back: Tensor, ends: Tensor,
    gate_up: Tensor, clamp: list[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    first, second, third, fourth = (empty_like(tensor) for tensor in (states, weights, gate_up_proj, down_proj))
    fifth, sixth = (states.new_empty(0) if bias is None else empty_like(bias) for bias in (gate_up_bias, down_bias))
    return first, second, third, fourth, fifth, sixth


@lean_op("triton_moe_experts_backward", fake=_empty_gradients)
def _gradients(
    gradient: Tensor, states: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor,
    gate_up_bias: Tensor | None, down_bias: Tensor | None, index: Tensor, order: Tensor, back: Tensor, ends: Tensor,
    gate_up: Tensor, clamp: list[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    found = _empty_gradients(
        gradient, states, weights, gate_up_proj, down_proj, gate_up_bias, down_bias, index, order, back, ends, gate_up,
        clamp,
    )  # fmt: skip
    of_states, of_weights, of_up, of_down, of_up_bias, of_down_bias = found
    if not len(states):
        for each in found:
            each.zero_()
        return found
    (choices, both), (hidden, top_k, experts) = gate_up.shape, (states.shape[1], index.shape[1], len(ends))
    turned, width, (alpha, limit) = bool(clamp), both // 2, clamp or (0.0, 0.0)
    gradient, states, weights = gradient.contiguous(), states.contiguous(), weights.contiguous()
    programs, common = (processors(states),), {"EXPERTS": power_of_two(experts), **_grid(states)}
    crowd = choices // experts

    tiles = _tiles(states, crowd, min(128, width), hidden)
    shares = blocks_of(tiles["COLUMNS"], width)
    of_gate_up, activated = empty_like(gate_up), states.new_empty(choices, width)
    of_rows = gate_up.new_empty(choices, shares, dtype=torch.float32)
    _down_backward[programs](
        gradient, down_proj, weights, gate_up, order, ends, of_gate_up, activated, of_rows,
        experts, top_k, hidden, width, *_strides(down_proj, not turned), alpha, limit,
        CLAMPED=turned, **common, **tiles,
    )  # fmt: skip
    block = min(1024, power_of_two(hidden))
    _of_routing[(choices,)](
        gradient, _dense(down_bias), of_rows, index.contiguous(), back, of_weights, experts, top_k, hidden, shares,
        BIASED=turned, SHARES=power_of_two(shares), BLOCK=block, num_warps=4,
    )  # fmt: skip

    rows = states.new_empty(choices, hidden)
    _down[programs](
        of_gate_up, gate_up_proj, None, ends, rows, experts, both, width, hidden, *_strides(gate_up_proj, not turned),
        BIASED=False, HALVES=not turned, **common, **_tiles(states, crowd, hidden, both),
    )  # fmt: skip
    _combined(rows, None, index, back, experts, of_states)

    tiles = _tiles(states, hidden, width, crowd, before=1)
    _of_weight[programs](
        gradient, activated, order, ends, of_down, experts, top_k, hidden, width, 0, *_strides(of_down, turned),
        programs[0], GATHERED="left", HALVES=False, **tiles,
    )  # fmt: skip
    tiles = _tiles(states, both, hidden, crowd, before=1)
    _of_weight[programs](
        of_gate_up, states, order, ends, of_up, experts, top_k, both, hidden, width, *_strides(of_up, turned),
        programs[0], GATHERED="right", HALVES=not turned, **tiles,
    )  # fmt: skip
    for routed, each, of_bias in ((False, of_gate_up, of_up_bias), (True, gradient, of_down_bias)):
        if turned:
            _of_bias[(experts, blocks_of(64, each.shape[1]))](
                each, weights, order, ends, of_bias, top_k, each.shape[1], ROUTED=routed, ROWS=32, COLUMNS=64,
                num_warps=4,
            )  # fmt: skip
    return found


def _apply(
    states: Tensor, index: Tensor, weights: Tensor, up: Tensor, down: Tensor, biases: Any, clamp: list[float]
) -> Tensor:
    # Autocast leaves biases as they are; they are added in float32.
    inputs, up, down = as_in_a_product(states, up, down)
    routing = route(index, len(up))
    output, _ = _experts(inputs, weights, up, down, *biases, index, routing.order, routing.back, routing.ends, clamp)
    return output.to(states.dtype)  # type: ignore[no-any-return]  # an operator has no types


def moe_experts(
    hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """Sort the choices by expert, and run grouped products over their rows. Nothing waits for the device."""
    return _apply(hidden_states, top_k_index, top_k_weights, gate_up_proj, down_proj, (None, None), [])


def gpt_oss(
    hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor,
    gate_up_proj_bias: Tensor, down_proj_bias: Tensor, alpha: float = ALPHA, limit: float = LIMIT,
) -> Tensor:  # fmt: skip
    """The same for the experts of gpt-oss."""
    biases = gate_up_proj_bias, down_proj_bias
    return _apply(hidden_states, top_k_index, top_k_weights, gate_up_proj, down_proj, biases, [alpha, limit])
