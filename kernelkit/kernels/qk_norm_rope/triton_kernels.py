"""Norms and rotation of queries and keys in Triton.

A program takes all heads of one token, of the query and of the key. Between forward and backward only the projections
and the reciprocal root of each head are kept. The backward turns the gradients back, and goes through the norm as in
``rms_norm``: programs take tokens in turn and add up their share of the weights' gradients in registers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelkit.kernels.lean_op import differentiable_op, lean_op
from kernelkit.kernels.passed_by import weight_and_eps
from kernelkit.kernels.rms_norm.triton_kernels import add_shares
from kernelkit.kernels.rotary_pos_emb.triton_kernels import angles_of
from kernelkit.kernels.triton_launch import empty_like, power_of_two, processors, warps
from kernelkit.ops.norms import Norm
from kernelkit.spec import Kernel

ELEMENTS = 8192
"""Elements of queries under way on each multiprocessor in the backward."""


@triton.jit
def _heads(
    x_ptr, weight_ptr, y_ptr, inverse_ptr, cos, sin, cos2, sin2,
    heads, dim, eps, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Normalise and rotate the heads of one token."""
    head, column, half = tl.arange(0, HEADS), tl.arange(0, HALF), dim // 2
    there = (head < heads)[:, None] & (column < half)[None, :]
    at = head[:, None] * dim + column[None, :]
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    normed: tl.constexpr = y_ptr.dtype.element_ty
    x1 = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    x2 = tl.load(x_ptr + at + half, mask=there, other=0.0).to(tl.float32)
    weight1 = tl.load(weight_ptr + column, mask=column < half, other=0.0).to(tl.float32)[None, :]
    weight2 = tl.load(weight_ptr + column + half, mask=column < half, other=0.0).to(tl.float32)[None, :]
    inverse = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, 1) / dim + eps)
    tl.store(inverse_ptr + head, inverse, mask=head < heads)
    # Rounded where the norm rounds: before the weight, and after it.
    x1 = ((x1 * inverse[:, None]).to(dtype).to(tl.float32) * weight1).to(normed).to(tl.float32)
    x2 = ((x2 * inverse[:, None]).to(dtype).to(tl.float32) * weight2).to(normed).to(tl.float32)
    tl.store(y_ptr + at, (x1 * cos - x2 * sin).to(normed), mask=there)
    tl.store(y_ptr + at + half, (x2 * cos2 + x1 * sin2).to(normed), mask=there)


@triton.jit
def _heads_backward(
    of_y_ptr, x_ptr, weight_ptr, inverse_ptr, of_x_ptr, cos, sin, cos2, sin2, of_weight1, of_weight2,
    heads, dim, of_head, of_channel, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Write the gradient of one token's heads, and return the weight's gradient so far, for each head."""
    head, column, half = tl.arange(0, HEADS), tl.arange(0, HALF), dim // 2
    there = (head < heads)[:, None] & (column < half)[None, :]
    at = head[:, None] * dim + column[None, :]
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    incoming = of_y_ptr + head.to(tl.int64)[:, None] * of_head + column[None, :] * of_channel
    of_y1 = tl.load(incoming, mask=there, other=0.0).to(tl.float32)
    of_y2 = tl.load(incoming + half * of_channel, mask=there, other=0.0).to(tl.float32)
    x1 = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    x2 = tl.load(x_ptr + at + half, mask=there, other=0.0).to(tl.float32)
    inverse = tl.load(inverse_ptr + head, mask=head < heads, other=0.0)[:, None]
    weight1 = tl.load(weight_ptr + column, mask=column < half, other=0.0).to(tl.float32)[None, :]
    weight2 = tl.load(weight_ptr + column + half, mask=column < half, other=0.0).to(tl.float32)[None, :]
    turned1, turned2 = of_y1 * cos - of_y2 * sin, of_y2 * cos2 + of_y1 * sin2
    x1, x2 = x1 * inverse, x2 * inverse
    scaled1, scaled2 = turned1 * weight1, turned2 * weight2
    mean = (tl.sum(scaled1 * x1 + scaled2 * x2, 1) / dim)[:, None]
    tl.store(of_x_ptr + at, ((scaled1 - x1 * mean) * inverse).to(of_x_ptr.dtype.element_ty), mask=there)
    tl.store(of_x_ptr + at + half, ((scaled2 - x2 * mean) * inverse).to(of_x_ptr.dtype.element_ty), mask=there)
    of_weight1 += turned1 * x1.to(dtype).to(tl.float32)
    of_weight2 += turned2 * x2.to(dtype).to(tl.float32)
    return of_weight1, of_weight2


@triton.jit
def _forward(
    query_ptr, key_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, rotated_query_ptr, rotated_key_ptr, inverse_ptr,
    length, query_heads, key_heads, dim, cos_of_batch, q_eps, k_eps,
    QUERY_HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    angle = token // length * cos_of_batch + token % length * dim
    cos, sin, cos2, sin2 = angles_of(cos_ptr, sin_ptr, angle, tl.arange(0, HALF), dim, False, False)
    inverse_ptr += token * (query_heads + key_heads)
    query_at, key_at = token * query_heads * dim, token * key_heads * dim
    _heads(
        query_ptr + query_at, q_weight_ptr, rotated_query_ptr + query_at, inverse_ptr,
        cos, sin, cos2, sin2, query_heads, dim, q_eps, QUERY_HEADS, HALF,
    )  # fmt: skip
    _heads(
        key_ptr + key_at, k_weight_ptr, rotated_key_ptr + key_at, inverse_ptr + query_heads,
        cos, sin, cos2, sin2, key_heads, dim, k_eps, KEY_HEADS, HALF,
    )  # fmt: skip


@triton.jit
def _backward(
    of_query_ptr, of_key_ptr, query_ptr, key_ptr, q_weight_ptr, k_weight_ptr, inverse_ptr, cos_ptr, sin_ptr,
    of_x_query_ptr, of_x_key_ptr, q_shares_ptr, k_shares_ptr,
    tokens, length, query_heads, key_heads, dim, cos_of_batch,
    query_of_batch, query_of_head, query_of_token, query_of_channel,
    key_of_batch, key_of_head, key_of_token, key_of_channel,
    QUERY_HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    program, programs, column = tl.program_id(0), tl.num_programs(0), tl.arange(0, HALF)
    of_q1 = tl.zeros((QUERY_HEADS, HALF), tl.float32)
    of_q2 = tl.zeros((QUERY_HEADS, HALF), tl.float32)
    of_k1 = tl.zeros((KEY_HEADS, HALF), tl.float32)
    of_k2 = tl.zeros((KEY_HEADS, HALF), tl.float32)
    for step in range(tl.cdiv(tokens - program, programs)):
        token = program.to(tl.int64) + step * programs
        batch, position = token // length, token % length
        angle = batch * cos_of_batch + position * dim
        cos, sin, cos2, sin2 = angles_of(cos_ptr, sin_ptr, angle, column, dim, False, True)
        inverses = inverse_ptr + token * (query_heads + key_heads)
        query_at, key_at = token * query_heads * dim, token * key_heads * dim
        of_q1, of_q2 = _heads_backward(
            of_query_ptr + batch * query_of_batch + position * query_of_token,
            query_ptr + query_at, q_weight_ptr, inverses, of_x_query_ptr + query_at,
            cos, sin, cos2, sin2, of_q1, of_q2,
            query_heads, dim, query_of_head, query_of_channel, QUERY_HEADS, HALF,
        )  # fmt: skip
        of_k1, of_k2 = _heads_backward(
            of_key_ptr + batch * key_of_batch + position * key_of_token,
            key_ptr + key_at, k_weight_ptr, inverses + query_heads, of_x_key_ptr + key_at,
            cos, sin, cos2, sin2, of_k1, of_k2,
            key_heads, dim, key_of_head, key_of_channel, KEY_HEADS, HALF,
        )  # fmt: skip
    half = dim // 2
    q_share, k_share = q_shares_ptr + program * dim + column, k_shares_ptr + program * dim + column
    tl.store(q_share, tl.sum(of_q1, 0), mask=column < half)
    tl.store(q_share + half, tl.sum(of_q2, 0), mask=column < half)
    tl.store(k_share, tl.sum(of_k1, 0), mask=column < half)
    tl.store(k_share + half, tl.sum(of_k2, 0), mask=column < half)


def _blocks(query: Tensor, key: Tensor) -> dict[str, int]:
    heads, kv_heads, half = (power_of_two(size) for size in (query.shape[2], key.shape[2], query.shape[3] // 2))
    # Half as many warps as elsewhere: on an H100 the backward took a quarter less time with them.
    return {"QUERY_HEADS": heads, "KEY_HEADS": kv_heads, "HALF": half, "num_warps": warps(heads * half)}


def _empty_output(
    query: Tensor,
    key: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_eps: float,
    k_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(query.dtype, q_weight.dtype)
    rotated = [empty_like(states, dtype).transpose(1, 2) for states in (query, key)]
    batch, length, heads, _ = query.shape
    inverse = query.new_empty((batch, length, heads + key.shape[2]), dtype=torch.float32)
    return rotated[0], rotated[1], inverse


def _empty_gradients(
    of_query: Tensor,
    of_key: Tensor,
    query: Tensor,
    key: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    inverse: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return empty_like(query), empty_like(key), empty_like(q_weight), empty_like(k_weight)


@lean_op("triton_qk_norm_rope_backward", fake=_empty_gradients)
def _gradients(
    of_query: Tensor,
    of_key: Tensor,
    query: Tensor,
    key: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    inverse: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _empty_gradients(of_query, of_key, query, key, q_weight, k_weight, inverse, cos, sin)
    of_x_query, of_x_key, of_q_weight, of_k_weight = outputs
    batch, length, query_heads, dim = query.shape
    if batch * length == 0:
        return of_x_query, of_x_key, of_q_weight.zero_(), of_k_weight.zero_()
    blocks = _blocks(query, key)
    each = max(2, ELEMENTS // (2 * blocks["QUERY_HEADS"] * blocks["HALF"]))
    programs = min(batch * length, each * processors(query))
    q_shares, k_shares = (query.new_empty((programs, dim), dtype=torch.float32) for _ in range(2))
    _backward[(programs,)](
        of_query, of_key, query.contiguous(), key.contiguous(), q_weight.contiguous(), k_weight.contiguous(), inverse,
        cos.contiguous(), sin.contiguous(), of_x_query, of_x_key, q_shares, k_shares,
        batch * length, length, query_heads, key.shape[2], dim, length * dim if cos.shape[0] > 1 else 0,
        *of_query.stride(), *of_key.stride(), **blocks,
    )  # fmt: skip
    return of_x_query, of_x_key, add_shares(q_shares, of_q_weight), add_shares(k_shares, of_k_weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, q_weight, k_weight, cos, sin, _, _ = inputs
    ctx.save_for_backward(query, key, q_weight, k_weight, output[2], cos, sin)
    ctx.mark_non_differentiable(output[2])


def _differentiate(ctx: Any, of_query: Tensor, of_key: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return *_gradients(of_query, of_key, *ctx.saved_tensors), None, None, None, None


@differentiable_op("triton_qk_norm_rope", fake=_empty_output, save=_save, differentiate=_differentiate)
def _normalise_and_rotate(
    query: Tensor,
    key: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_eps: float,
    k_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rotated_query, rotated_key, inverse = _empty_output(query, key, q_weight, k_weight, cos, sin, q_eps, k_eps)
    batch, length, query_heads, dim = query.shape
    if batch * length:
        _forward[(batch * length,)](
            query.contiguous(), key.contiguous(), q_weight.contiguous(), k_weight.contiguous(), cos.contiguous(),
            sin.contiguous(), rotated_query, rotated_key, inverse,
            length, query_heads, key.shape[2], dim, length * dim if cos.shape[0] > 1 else 0, q_eps, k_eps,
            **_blocks(query, key),
        )  # fmt: skip
    return rotated_query, rotated_key, inverse


def qk_norm_rope(
    query: Tensor, key: Tensor, q_norm: Norm, k_norm: Norm, rotary_pos_emb: Kernel, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Both norms and the rotation in one pass."""
    (q_weight, q_eps), (k_weight, k_eps) = (weight_and_eps(norm, "qk_norm_rope") for norm in (q_norm, k_norm))
    rotated_query, rotated_key, _ = _normalise_and_rotate(query, key, q_weight, k_weight, cos, sin, q_eps, k_eps)
    return rotated_query, rotated_key
