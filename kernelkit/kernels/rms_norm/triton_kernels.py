"""RMS normalisation in Triton, with and without the addition of a residual before it.

A program takes a tile of whole rows: one long row, or several short ones. Between forward and backward only the input
is kept, and the root of each row's mean square is taken again. With n = x / root, g = w * dy and H channels the
gradients are dx = (g - n * mean(g * n)) / root and dw = sum of dy * n over the rows. Programs of the backward take rows
in turn, the next of which are on their way meanwhile, and add up their share of dw in registers; a second kernel adds
the shares, always in the same order.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelkit.kernels.lean_op import differentiable_op, lean_op
from kernelkit.kernels.triton_launch import blocks_of, empty_like, power_of_two, processors, shared_memory, warps

TILE = 2048
"""Elements that a program holds where rows are shorter."""
PROGRAMS = 2
"""Programs of the backward for each multiprocessor."""


@triton.jit
def _forward(
    x_ptr,
    residual_ptr,
    weight_ptr,
    total_ptr,
    y_ptr,
    rows,
    width,
    eps,
    OFFSET: tl.constexpr,
    ROUNDED: tl.constexpr,
    ADDED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    there = (row < rows)[:, None] & (column < width)[None, :]
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    x = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32) + OFFSET
    dtype: tl.constexpr = total_ptr.dtype.element_ty
    if ADDED:
        total = (x + tl.load(residual_ptr + at, mask=there, other=0.0).to(tl.float32)).to(dtype)
        tl.store(total_ptr + at, total, mask=there)
        x = total.to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, 1) / width + eps)[:, None]
    if ROUNDED:
        normed = normed.to(dtype).to(tl.float32)
    tl.store(y_ptr + at, (normed * weight[None, :]).to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _backward(
    of_y_ptr,
    of_total_ptr,
    x_ptr,
    weight_ptr,
    of_x_ptr,
    shares_ptr,
    rows,
    width,
    eps,
    OFFSET: tl.constexpr,
    ROUNDED: tl.constexpr,
    ADDED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32) + OFFSET
    of_weight = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS)
        there = (row < rows)[:, None] & (column < width)[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        x = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
        of_y = tl.load(of_y_ptr + at, mask=there, other=0.0).to(tl.float32)
        # Zero off the tensor, where it would be infinite without eps.
        inverse = tl.where(row < rows, tl.rsqrt(tl.sum(x * x, 1) / width + eps), 0.0)[:, None]
        normed = x * inverse
        scaled = of_y * weight[None, :]
        of_x = (scaled - normed * (tl.sum(scaled * normed, 1) / width)[:, None]) * inverse
        if ADDED:
            of_x += tl.load(of_total_ptr + at, mask=there, other=0.0).to(tl.float32)
        tl.store(of_x_ptr + at, of_x.to(of_x_ptr.dtype.element_ty), mask=there)
        if ROUNDED:
            normed = normed.to(x_ptr.dtype.element_ty).to(tl.float32)
        of_weight += of_y * normed
    share = shares_ptr + tl.program_id(0).to(tl.int64) * width + column
    tl.store(share, tl.sum(of_weight, 0), mask=column < width)


@triton.jit
def _add_shares(shares_ptr, sum_ptr, shares, width, SHARES: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((SHARES, COLUMNS), tl.float32)
    for first in range(0, shares, SHARES):
        share = first + tl.arange(0, SHARES)
        there = (share < shares)[:, None] & (column < width)[None, :]
        total += tl.load(shares_ptr + share[:, None] * width + column[None, :], mask=there, other=0.0)
    tl.store(sum_ptr + column, tl.sum(total, 0).to(sum_ptr.dtype.element_ty), mask=column < width)


def add_shares(shares: Tensor, sum_of: Tensor) -> Tensor:
    """Write the sum of ``shares`` [P, W] over P into ``sum_of`` [W], and return it."""
    number, width = shares.shape
    _add_shares[(blocks_of(16, width),)](shares, sum_of, number, width, SHARES=128, COLUMNS=16, num_warps=4)
    return sum_of


def _tile(width: int) -> dict[str, int]:
    """Rows and block of a tile, and its warps."""
    block = power_of_two(width)
    rows = max(1, TILE // block)
    return {"ROWS": rows, "BLOCK": block, "num_warps": warps(rows * block)}


def _stages(total: Tensor, block: int, bytes_of_tile: int) -> int:
    """Tiles of the backward under way: as many as pay on an H200, and fit where there is less shared memory."""
    ahead = min(3 if block <= TILE else 2, shared_memory(total) // bytes_of_tile)
    return 1 + ahead


def launch_forward(
    states: Tensor, residual: Tensor | None, weight: Tensor, eps: float, offset: float, rounded: bool
) -> tuple[Tensor, Tensor]:
    """Normalise ``states``, or its sum with ``residual``.

    Args:
        states: [..., H].
        residual: [..., H], or None.
        weight: [H].
        eps: added to the mean square.
        offset: added to the weight.
        rounded: round to the dtype of what is normalised before the weight, as the variant ``standard`` does.

    Returns:
        What was normalised, and the result.
    """
    total, normed = outputs_like(states, residual, weight, rounded)
    if states.numel() == 0:
        return total, normed
    rows, width = math.prod(states.shape[:-1]), states.shape[-1]
    tile = _tile(width)
    states = states.contiguous()
    _forward[(blocks_of(tile["ROWS"], rows),)](
        states, states if residual is None else residual.contiguous(), weight.contiguous(), total, normed,
        rows, width, eps,
        OFFSET=offset, ROUNDED=rounded, ADDED=residual is not None, **tile,
    )  # fmt: skip
    return total, normed


def outputs_like(states: Tensor, residual: Tensor | None, weight: Tensor, rounded: bool) -> tuple[Tensor, Tensor]:
    """What ``launch_forward`` returns, unwritten."""
    total = states
    if residual is not None:
        total = empty_like(states, torch.promote_types(states.dtype, residual.dtype))
    dtype = torch.promote_types(total.dtype, weight.dtype) if rounded else total.dtype
    return total, empty_like(states, dtype)


def launch_backward(
    of_normed: Tensor,
    of_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    eps: float,
    offset: float,
    rounded: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of ``total``, which was normalised, and of the weight.

    Args:
        of_normed: gradient of the result.
        of_total: gradient of ``total`` from elsewhere, to be added, or None.
        total, weight, eps, offset, rounded: as in ``launch_forward``.
    """
    of_states, of_weight = empty_like(total), empty_like(weight)
    if total.numel() == 0:
        return of_states, of_weight.zero_()
    rows, width = math.prod(total.shape[:-1]), total.shape[-1]
    tile = _tile(width)
    programs = min(blocks_of(tile["ROWS"], rows), PROGRAMS * processors(total))
    shares = total.new_empty((programs, width), dtype=torch.float32)
    of_normed = of_normed.contiguous()
    loaded = sum(each.element_size() for each in (of_normed, of_total, total) if each is not None)
    _backward[(programs,)](
        of_normed, of_normed if of_total is None else of_total.contiguous(), total.contiguous(), weight.contiguous(),
        of_states, shares, rows, width, eps,
        OFFSET=offset, ROUNDED=rounded, ADDED=of_total is not None, **tile,
        STAGES=_stages(total, tile["BLOCK"], loaded * tile["ROWS"] * tile["BLOCK"]),
    )  # fmt: skip
    return of_states, add_shares(shares, of_weight)


def _empty_output(states: Tensor, weight: Tensor, eps: float, offset: float, rounded: bool) -> Tensor:
    return outputs_like(states, None, weight, rounded)[1]


def _empty_gradients(
    of_normed: Tensor, states: Tensor, weight: Tensor, eps: float, offset: float, rounded: bool
) -> tuple[Tensor, Tensor]:
    return empty_like(states), empty_like(weight)


@lean_op("triton_rms_norm_backward", fake=_empty_gradients)
def _gradients(
    of_normed: Tensor, states: Tensor, weight: Tensor, eps: float, offset: float, rounded: bool
) -> tuple[Tensor, Tensor]:
    return launch_backward(of_normed, None, states, weight, eps, offset, rounded)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    states, weight, *ctx.settings = inputs
    ctx.save_for_backward(states, weight)


def _differentiate(ctx: Any, of_normed: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(of_normed, *ctx.saved_tensors, *ctx.settings), None, None, None


@differentiable_op("triton_rms_norm", fake=_empty_output, save=_save, differentiate=_differentiate)
def _normalise(states: Tensor, weight: Tensor, eps: float, offset: float, rounded: bool) -> Tensor:
    return launch_forward(states, None, weight, eps, offset, rounded)[1]


def standard(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Rounds before the weight."""
    return _normalise(hidden_states, weight, eps, 0.0, True)  # type: ignore[no-any-return]  # an operator has no types


def zero_centered(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """1 + weight, rounded once."""
    return _normalise(hidden_states, weight, eps, 1.0, False)  # type: ignore[no-any-return]  # as above


def fp32_weight(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Rounded once."""
    return _normalise(hidden_states, weight, eps, 0.0, False)  # type: ignore[no-any-return]  # as above
