"""Rotary position embedding in Triton.

A program rotates the heads of one token, of the query and of the key. The result lies in memory as [B, S, H, D], the
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
def angles_of(cos_ptr, sin_ptr, first, column, there, width, PAIRED: tl.constexpr, BACK: tl.constexpr):
    """The cos and sin for the first and the second channel of each pair, in float32.

    ``PAIRED`` pairs are neighbours and share an angle. ``BACK`` swaps and negates the sines, which transposes the
    rotation.
    """
    second = column if PAIRED else column + width // 2
    cos = tl.load(cos_ptr + first + column, mask=there, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + first + column, mask=there, other=0.0).to(tl.float32)
    cos2 = tl.load(cos_ptr + first + second, mask=there, other=0.0).to(tl.float32)
    sin2 = tl.load(sin_ptr + first + second, mask=there, other=0.0).to(tl.float32)
    if BACK:
        return cos, -sin2, cos2, -sin
    return cos, sin, cos2, sin2


@triton.jit
def _load_pairs(
    x_ptr, head, heads, width: tl.constexpr, of_head, of_channel, PAIRED: tl.constexpr, HALF: tl.constexpr
):  # fmt: skip
    """The first and the second channel [HEADS, HALF] of each pair."""
    x_ptr += head.to(tl.int64) * of_head
    if PAIRED:
        # Both of a pair in one load, so that it is wide.
        both = tl.arange(0, 2 * HALF)[None, :]
        x = tl.load(x_ptr + both * of_channel, mask=(head < heads) & (both < width), other=0.0)
        x1, x2 = tl.split(tl.reshape(x, (head.shape[0], HALF, 2)))
    else:
        column = tl.arange(0, HALF)[None, :]
        there = (head < heads) & (column < width // 2)
        x1 = tl.load(x_ptr + column * of_channel, mask=there, other=0.0)
        x2 = tl.load(x_ptr + (column + width // 2) * of_channel, mask=there, other=0.0)
    return x1, x2


@triton.jit
def _store_rotated(
    x_ptr, y_ptr, x1, x2, cos, sin, cos2, sin2, head, heads, dim, width: tl.constexpr, of_head, of_channel,
    PAIRED: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    x1, x2 = x1.to(tl.float32), x2.to(tl.float32)
    y1, y2 = (x1 * cos - x2 * sin).to(y_ptr.dtype.element_ty), (x2 * cos2 + x1 * sin2).to(y_ptr.dtype.element_ty)
    y_ptr += head * dim
    if PAIRED:
        both = tl.arange(0, 2 * HALF)[None, :]
        y = tl.reshape(tl.join(y1, y2), (head.shape[0], 2 * HALF))
        tl.store(y_ptr + both, y, mask=(head < heads) & (both < width))
    else:
        column = tl.arange(0, HALF)[None, :]
        there = (head < heads) & (column < width // 2)
        tl.store(y_ptr + column, y1, mask=there)
        tl.store(y_ptr + column + width // 2, y2, mask=there)
    if REST > 0:
        x_ptr += head.to(tl.int64) * of_head
        rest = width + tl.arange(0, REST)[None, :]
        there = (head < heads) & (rest < dim)
        tl.store(y_ptr + rest, tl.load(x_ptr + rest * of_channel, mask=there), mask=there)


@triton.jit
def _rotate(
    query_ptr, key_ptr, cos_ptr, sin_ptr, rotated_query_ptr, rotated_key_ptr,
    length, query_heads, key_heads, dim, width: tl.constexpr, cos_of_batch,
    query_of_batch, query_of_head, query_of_token, query_of_channel,
    key_of_batch, key_of_head, key_of_token, key_of_channel,
    PAIRED: tl.constexpr, BACK: tl.constexpr, SHARES: tl.constexpr,
    QUERY_HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """A share of the heads of one token. All loads are under way before anything is stored."""
    token, share = (tl.program_id(0) // SHARES).to(tl.int64), tl.program_id(0) % SHARES
    batch, position = token // length, token % length
    query_head = share * QUERY_HEADS + tl.arange(0, QUERY_HEADS)[:, None]
    key_head = share * KEY_HEADS + tl.arange(0, KEY_HEADS)[:, None]
    query_ptr += batch * query_of_batch + position * query_of_token
    key_ptr += batch * key_of_batch + position * key_of_token
    query1, query2 = _load_pairs(
        query_ptr, query_head, query_heads, width, query_of_head, query_of_channel, PAIRED, HALF
    )
    key1, key2 = _load_pairs(key_ptr, key_head, key_heads, width, key_of_head, key_of_channel, PAIRED, HALF)
    angle, column = batch * cos_of_batch + position * width, tl.arange(0, HALF)[None, :]
    cos, sin, cos2, sin2 = angles_of(cos_ptr, sin_ptr, angle, column, column < width // 2, width, PAIRED, BACK)
    _store_rotated(
        query_ptr, rotated_query_ptr + token * query_heads * dim, query1, query2, cos, sin, cos2, sin2,
        query_head, query_heads, dim, width, query_of_head, query_of_channel, PAIRED, HALF, REST,
    )  # fmt: skip
    _store_rotated(
        key_ptr, rotated_key_ptr + token * key_heads * dim, key1, key2, cos, sin, cos2, sin2,
        key_head, key_heads, dim, width, key_of_head, key_of_channel, PAIRED, HALF, REST,
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
    # Half of the heads are enough under way, and twice as many programs fit.
    shares = 2 if query_heads % 2 == key_heads % 2 == 0 and query_heads * width >= 4096 else 1
    blocks = power_of_two(query_heads // shares), power_of_two(key_heads // shares), power_of_two(width // 2)
    _rotate[(batch * length * shares,)](
        query, key, cos.contiguous(), sin.contiguous(), rotated_query, rotated_key,
        length, query_heads, key_heads, dim, width, length * width if cos.shape[0] > 1 else 0,
        *query.stride(), *key.stride(), paired, back, shares, *blocks, power_of_two(dim - width) if dim > width else 0,
        num_warps=warps(2 * blocks[0] * blocks[2]),
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
