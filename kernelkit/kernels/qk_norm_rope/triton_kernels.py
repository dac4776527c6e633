"""Norms and rotation of queries and keys in Triton.

A program takes some tokens, whose angles it loads once, and goes through their heads, which are loaded ahead. Between
forward and backward only the projections are kept. The backward turns the gradients back, and goes through the norm as
in ``rms_norm``: programs take tokens in turn and add up their share of the weights' gradients in registers.
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
from kernelkit.kernels.triton_launch import blocks_of, empty_like, power_of_two, processors
from kernelkit.ops.norms import Norm
from kernelkit.spec import Kernel

TILE, WARPS = 512, 4
"""Pairs of channels that a program holds, and its warps."""
PROGRAMS = 4
"""Programs of the backward for each multiprocessor."""


@triton.jit
def _heads(
    x_ptr, weight_ptr, y_ptr, there, cos, sin, cos2, sin2, heads, eps, DIM: tl.constexpr, HALF: tl.constexpr
):  # fmt: skip
    """Normalise and rotate all heads of some tokens."""
    first = tl.arange(0, HALF)[None, :]
    second = first + DIM // 2
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    normed: tl.constexpr = y_ptr.dtype.element_ty
    weight1 = tl.load(weight_ptr + first, mask=first < DIM // 2, other=0.0).to(tl.float32)
    weight2 = tl.load(weight_ptr + second, mask=first < DIM // 2, other=0.0).to(tl.float32)
    for _ in tl.range(0, heads, num_stages=3):
        x1 = tl.load(x_ptr + first, mask=there, other=0.0).to(tl.float32)
        x2 = tl.load(x_ptr + second, mask=there, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, 1, keep_dims=True) / DIM + eps)
        # Rounded where the norm rounds: before the weight, and after it.
        x1 = ((x1 * inverse).to(dtype).to(tl.float32) * weight1).to(normed).to(tl.float32)
        x2 = ((x2 * inverse).to(dtype).to(tl.float32) * weight2).to(normed).to(tl.float32)
        tl.store(y_ptr + first, (x1 * cos - x2 * sin).to(normed), mask=there)
        tl.store(y_ptr + second, (x2 * cos2 + x1 * sin2).to(normed), mask=there)
        x_ptr += DIM
        y_ptr += DIM


@triton.jit
def _heads_backward(
    of_y_ptr, x_ptr, weight_ptr, of_x_ptr, there, cos, sin, cos2, sin2, of_weight1, of_weight2,
    heads, eps, of_head, of_channel, DIM: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Write the gradient of all heads of some tokens, and return the weight's gradient so far, for each token."""
    first = tl.arange(0, HALF)[None, :]
    second = first + DIM // 2
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    weight1 = tl.load(weight_ptr + first, mask=first < DIM // 2, other=0.0).to(tl.float32)
    weight2 = tl.load(weight_ptr + second, mask=first < DIM // 2, other=0.0).to(tl.float32)
    for _ in tl.range(0, heads, num_stages=4):
        of_y1 = tl.load(of_y_ptr + first * of_channel, mask=there, other=0.0).to(tl.float32)
        of_y2 = tl.load(of_y_ptr + second * of_channel, mask=there, other=0.0).to(tl.float32)
        x1 = tl.load(x_ptr + first, mask=there, other=0.0).to(tl.float32)
        x2 = tl.load(x_ptr + second, mask=there, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, 1, keep_dims=True) / DIM + eps)
        turned1, turned2 = of_y1 * cos - of_y2 * sin, of_y2 * cos2 + of_y1 * sin2
        x1, x2 = x1 * inverse, x2 * inverse
        scaled1, scaled2 = turned1 * weight1, turned2 * weight2
        mean = tl.sum(scaled1 * x1 + scaled2 * x2, 1, keep_dims=True) / DIM
        tl.store(of_x_ptr + first, ((scaled1 - x1 * mean) * inverse).to(of_x_ptr.dtype.element_ty), mask=there)
        tl.store(of_x_ptr + second, ((scaled2 - x2 * mean) * inverse).to(of_x_ptr.dtype.element_ty), mask=there)
        of_weight1 += turned1 * x1.to(dtype).to(tl.float32)
        of_weight2 += turned2 * x2.to(dtype).to(tl.float32)
        of_y_ptr += of_head
        x_ptr += DIM
        of_x_ptr += DIM
    return of_weight1, of_weight2


@triton.jit
def _forward(
    query_ptr, key_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, rotated_query_ptr, rotated_key_ptr,
    tokens, length, query_heads, key_heads, cos_of_batch, q_eps, k_eps,
    DIM: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)[:, None]
    column = tl.arange(0, HALF)[None, :]
    there = (token < tokens) & (column < DIM // 2)
    angle = token // length * cos_of_batch + token % length * DIM
    cos, sin, cos2, sin2 = angles_of(cos_ptr, sin_ptr, angle, column, there, DIM, False, False)
    query_at, key_at = token * query_heads * DIM, token * key_heads * DIM
    _heads(
        query_ptr + query_at, q_weight_ptr, rotated_query_ptr + query_at, there,
        cos, sin, cos2, sin2, query_heads, q_eps, DIM, HALF,
    )  # fmt: skip
    _heads(
        key_ptr + key_at, k_weight_ptr, rotated_key_ptr + key_at, there,
        cos, sin, cos2, sin2, key_heads, k_eps, DIM, HALF,
    )  # fmt: skip


@triton.jit
def _backward(
    of_query_ptr, of_key_ptr, query_ptr, key_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr,
    of_x_query_ptr, of_x_key_ptr, q_shares_ptr, k_shares_ptr,
    tokens, length, query_heads, key_heads, cos_of_batch, q_eps, k_eps,
    query_of_batch, query_of_head, query_of_token, query_of_channel,
    key_of_batch, key_of_head, key_of_token, key_of_channel,
    DIM: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    program, column = tl.program_id(0), tl.arange(0, HALF)[None, :]
    of_q1 = tl.zeros((TOKENS, HALF), tl.float32)
    of_q2 = tl.zeros((TOKENS, HALF), tl.float32)
    of_k1 = tl.zeros((TOKENS, HALF), tl.float32)
    of_k2 = tl.zeros((TOKENS, HALF), tl.float32)
    for tile in range(program, tl.cdiv(tokens, TOKENS), tl.num_programs(0)):
        token = (tile * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)[:, None]
        there = (token < tokens) & (column < DIM // 2)
        batch, position = token // length, token % length
        angle = batch * cos_of_batch + position * DIM
        cos, sin, cos2, sin2 = angles_of(cos_ptr, sin_ptr, angle, column, there, DIM, False, True)
        query_at, key_at = token * query_heads * DIM, token * key_heads * DIM
        of_q1, of_q2 = _heads_backward(
            of_query_ptr + batch * query_of_batch + position * query_of_token,
            query_ptr + query_at, q_weight_ptr, of_x_query_ptr + query_at, there,
            cos, sin, cos2, sin2, of_q1, of_q2,
            query_heads, q_eps, query_of_head, query_of_channel, DIM, HALF,
        )  # fmt: skip
        of_k1, of_k2 = _heads_backward(
            of_key_ptr + batch * key_of_batch + position * key_of_token,
            key_ptr + key_at, k_weight_ptr, of_x_key_ptr + key_at, there,
            cos, sin, cos2, sin2, of_k1, of_k2,
            key_heads, k_eps, key_of_head, key_of_channel, DIM, HALF,
        )  # fmt: skip
    first = tl.arange(0, HALF)
    q_share, k_share = q_shares_ptr + program * DIM + first, k_shares_ptr + program * DIM + first
    tl.store(q_share, tl.sum(of_q1, 0), mask=first < DIM // 2)
    tl.store(q_share + DIM // 2, tl.sum(of_q2, 0), mask=first < DIM // 2)
    tl.store(k_share, tl.sum(of_k1, 0), mask=first < DIM // 2)
    tl.store(k_share + DIM // 2, tl.sum(of_k2, 0), mask=first < DIM // 2)


def _blocks(dim: int) -> dict[str, int]:
    half = power_of_two(dim // 2)
    return {"DIM": dim, "HALF": half, "TOKENS": max(1, TILE // half), "num_warps": WARPS}


def _empty_output(
    query: Tensor, key: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, q_eps: float, k_eps: float
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(query.dtype, q_weight.dtype)
    return empty_like(query, dtype).transpose(1, 2), empty_like(key, dtype).transpose(1, 2)


def _empty_gradients(
    of_query: Tensor, of_key: Tensor, query: Tensor, key: Tensor, q_weight: Tensor, k_weight: Tensor,
    cos: Tensor, sin: Tensor, q_eps: float, k_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return empty_like(query), empty_like(key), empty_like(q_weight), empty_like(k_weight)


@lean_op("triton_qk_norm_rope_backward", fake=_empty_gradients)
def _gradients(
    of_query: Tensor, of_key: Tensor, query: Tensor, key: Tensor, q_weight: Tensor, k_weight: Tensor,
    cos: Tensor, sin: Tensor, q_eps: float, k_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    outputs = _empty_gradients(of_query, of_key, query, key, q_weight, k_weight, cos, sin, q_eps, k_eps)
    of_x_query, of_x_key, of_q_weight, of_k_weight = outputs
    batch, length, query_heads, dim = query.shape
    if batch * length == 0:
        return of_x_query, of_x_key, of_q_weight.zero_(), of_k_weight.zero_()
    blocks = _blocks(dim)
    programs = min(blocks_of(blocks["TOKENS"], batch * length), PROGRAMS * processors(query))
    q_shares, k_shares = (query.new_empty((programs, dim), dtype=torch.float32) for _ in range(2))
    _backward[(programs,)](
        of_query, of_key, query.contiguous(), key.contiguous(), q_weight.contiguous(), k_weight.contiguous(),
        cos.contiguous(), sin.contiguous(), of_x_query, of_x_key, q_shares, k_shares,
        batch * length, length, query_heads, key.shape[2], length * dim if cos.shape[0] > 1 else 0, q_eps, k_eps,
        *of_query.stride(), *of_key.stride(), **blocks,
    )  # fmt: skip
    return of_x_query, of_x_key, add_shares(q_shares, of_q_weight), add_shares(k_shares, of_k_weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.q_eps, ctx.k_eps = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, of_query: Tensor, of_key: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(of_query, of_key, *ctx.saved_tensors, ctx.q_eps, ctx.k_eps), None, None, None, None


@differentiable_op("triton_qk_norm_rope", fake=_empty_output, save=_save, differentiate=_differentiate)
def _normalise_and_rotate(
    query: Tensor, key: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, q_eps: float, k_eps: float
) -> tuple[Tensor, Tensor]:
    rotated_query, rotated_key = _empty_output(query, key, q_weight, k_weight, cos, sin, q_eps, k_eps)
    batch, length, query_heads, dim = query.shape
    if batch * length:
        blocks = _blocks(dim)
        _forward[(blocks_of(blocks["TOKENS"], batch * length),)](
            query.contiguous(), key.contiguous(), q_weight.contiguous(), k_weight.contiguous(), cos.contiguous(),
            sin.contiguous(), rotated_query, rotated_key,
            batch * length, length, query_heads, key.shape[2], length * dim if cos.shape[0] > 1 else 0, q_eps, k_eps,
            **blocks,
        )  # fmt: skip
    return rotated_query, rotated_key


def qk_norm_rope(
    query: Tensor, key: Tensor, q_norm: Norm, k_norm: Norm, rotary_pos_emb: Kernel, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Both norms and the rotation in one pass."""
    (q_weight, q_eps), (k_weight, k_eps) = (weight_and_eps(norm, "qk_norm_rope") for norm in (q_norm, k_norm))
    rotated: tuple[Tensor, Tensor] = _normalise_and_rotate(query, key, q_weight, k_weight, cos, sin, q_eps, k_eps)
    return rotated
