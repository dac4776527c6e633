"""Rotary position embedding in Triton.

A program rotates all heads of one token, of the query and of the key. The result lies in memory as [B, S, H, D], the
order of a projection, which every attention kernel reads without a copy. Going back is the same rotation with the
angle reversed, so that the gradient needs nothing but cos and sin.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernelkit.kernels.lean_op import differentiable_op
from kernelkit.kernels.triton_launch import power_of_two, warps
from kernelkit.spec import Kernel


@triton.jit
def angles_of(cos_ptr, sin_ptr, first, column, width, PAIRED: tl.constexpr, BACK: tl.constexpr):
    """The cos and sin for the first and the second channel of each pair, in float32.

    ``PAIRED`` pairs are neighbours and share an angle. ``BACK`` swaps and negates the sines, which transposes the
    rotation.
    """
    there = column < width // 2
    second = column if PAIRED else column + width // 2
    cos = tl.load(cos_ptr + first + column, mask=there, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + first + column, mask=there, other=0.0).to(tl.float32)[None, :]
    cos2 = tl.load(cos_ptr + first + second, mask=there, other=0.0).to(tl.float32)[None, :]
    sin2 = tl.load(sin_ptr + first + second, mask=there, other=0.0).to(tl.float32)[None, :]
    if BACK:
        return cos, -sin2, cos2, -sin
    return cos, sin, cos2, sin2


@triton.jit
def _rotate_heads(
    x_ptr, y_ptr, cos, sin, cos2, sin2,
    heads, dim, width: tl.constexpr, of_head, of_channel,
    PAIRED: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    head = tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    half = width // 2
    x_ptr += head.to(tl.int64) * of_head
    y_ptr += head * dim
    if PAIRED:
        # Both of a pair in one load, so that it is wide.
        both = tl.arange(0, 2 * HALF)[None, :]
        there = (head < heads) & (both < width)
        x = tl.load(x_ptr + both * of_channel, mask=there, other=0.0).to(tl.float32)
        x1, x2 = tl.split(tl.reshape(x, (HEADS, HALF, 2)))
        y = tl.reshape(tl.join(x1 * cos - x2 * sin, x2 * cos2 + x1 * sin2), (HEADS, 2 * HALF))
        tl.store(y_ptr + both, y.to(y_ptr.dtype.element_ty), mask=there)
    else:
        there = (head < heads) & (column < half)
        x1 = tl.load(x_ptr + column * of_channel, mask=there, other=0.0).to(tl.float32)
        x2 = tl.load(x_ptr + (column + half) * of_channel, mask=there, other=0.0).to(tl.float32)
        tl.store(y_ptr + column, (x1 * cos - x2 * sin).to(y_ptr.dtype.element_ty), mask=there)
        tl.store(y_ptr + column + half, (x2 * cos2 + x1 * sin2).to(y_ptr.dtype.element_ty), mask=there)
    if REST > 0:
        rest = width + tl.arange(0, REST)[None, :]
        there = (head < heads) & (rest < dim)
        tl.store(y_ptr + rest, tl.load(x_ptr + rest * of_channel, mask=there), mask=there)


@triton.jit
def _rotate(
    query_ptr, key_ptr, cos_ptr, sin_ptr, rotated_query_ptr, rotated_key_ptr,
    length, query_heads, key_heads, dim, width: tl.constexpr, cos_of_batch,
    query_of_batch, query_of_head, query_of_token, query_of_channel,
    key_of_batch, key_of_head, key_of_token, key_of_channel,
    PAIRED: tl.constexpr, BACK: tl.constexpr,
    QUERY_HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    batch, position = token // length, token % length
    angle = batch * cos_of_batch + position * width
    cos, sin, cos2, sin2 = angles_of(cos_ptr, sin_ptr, angle, tl.arange(0, HALF), width, PAIRED, BACK)
    _rotate_heads(
        query_ptr + batch * query_of_batch + position * query_of_token,
        rotated_query_ptr + token * query_heads * dim,
        cos, sin, cos2, sin2, query_heads, dim, width, query_of_head, query_of_channel,
        PAIRED, QUERY_HEADS, HALF, REST,
    )  # fmt: skip
    _rotate_heads(
        key_ptr + batch * key_of_batch + position * key_of_token,
        rotated_key_ptr + token * key_heads * dim,
        cos, sin, cos2, sin2, key_heads, dim, width, key_of_head, key_of_channel,
        PAIRED, KEY_HEADS, HALF, REST,
    )  # fmt: skip


def heads_first(states: Tensor) -> Tensor:
    """A new tensor [B, H, S, D] like ``states``, in the memory order of [B, S, H, D]."""
    batch, heads, length, dim = states.shape
    return states.new_empty((batch, length, heads, dim)).transpose(1, 2)


def _empty_output(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, paired: bool, back: bool
) -> tuple[Tensor, Tensor]:
    return heads_first(query), heads_first(key)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, cos, sin, ctx.paired, ctx.back = inputs
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx: Any, of_query: Tensor, of_key: Tensor) -> tuple[Tensor | None, ...]:
    return *_turn(of_query, of_key, *ctx.saved_tensors, ctx.paired, not ctx.back), None, None, None, None


@differentiable_op("triton_rotary_pos_emb", fake=_empty_output, save=_save, differentiate=_differentiate)
def _turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, paired: bool, back: bool) -> tuple[Tensor, Tensor]:
    rotated_query, rotated_key = heads_first(query), heads_first(key)
    batch, query_heads, length, dim = query.shape
    key_heads, width = key.shape[1], cos.shape[-1]
    if query.numel() == 0:
        return rotated_query, rotated_key
    blocks = power_of_two(query_heads), power_of_two(key_heads), power_of_two(width // 2)
    _rotate[(batch * length,)](
        query, key, cos.contiguous(), sin.contiguous(), rotated_query, rotated_key,
        length, query_heads, key_heads, dim, width, length * width if cos.shape[0] > 1 else 0,
        *query.stride(), *key.stride(), paired, back, *blocks, power_of_two(dim - width) if dim > width else 0,
        num_warps=warps(blocks[0] * blocks[2]),
    )  # fmt: skip
    return rotated_query, rotated_key


def _kernel(paired: bool) -> Kernel:
    def kernel(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        rotated: tuple[Tensor, Tensor] = _turn(query, key, cos, sin, paired, False)
        return rotated

    return kernel


# The rotated width is read off cos.
full = partial = _kernel(paired=False)
interleaved = _kernel(paired=True)
