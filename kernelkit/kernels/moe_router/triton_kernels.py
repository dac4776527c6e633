"""The choice of experts in Triton: one pass over the logits forward, and one backward.

The choice is a loop over a tile's largest. Backward, with p the probabilities of all experts, or those of the chosen
divided by their sum, and g the weights' gradient at the chosen and zero elsewhere: dlogits = p * (g - sum of g * p).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelkit.kernels.lean_op import differentiable_op, lean_op
from kernelkit.kernels.triton_launch import blocks_of, empty_like, power_of_two
from kernelkit.kernels.triton_router import CHOSEN, probabilities, ranks

TILE, WARPS = 2048, 4
"""The numbers that a program looks at, and its warps."""


@triton.jit
def _forward(
    logits_ptr, weights_ptr, index_ptr, rows, experts,
    TOP_K: tl.constexpr, NORMED: tl.constexpr, CHOICES: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    first, expert, choice = tl.program_id(0) * ROWS, tl.arange(0, BLOCK)[None, :], tl.arange(0, CHOICES)[None, :]
    values, probability = probabilities(logits_ptr, first, rows, experts, BLOCK, ROWS)
    order = ranks(values, experts, BLOCK)
    weights, index = tl.zeros((ROWS, CHOICES), tl.float32), tl.zeros((ROWS, CHOICES), tl.int32)
    for number in range(TOP_K):
        best = tl.argmax(order, axis=1)[:, None]
        weight = tl.sum(tl.where(expert == best, probability, 0.0), axis=1)[:, None]
        weights, index = tl.where(choice == number, weight, weights), tl.where(choice == number, best, index)
        order = tl.where(expert == best, CHOSEN, order)
    if NORMED:
        weights /= tl.sum(weights, axis=1)[:, None]
    row = first + tl.arange(0, ROWS)
    there = (row < rows)[:, None] & (choice < TOP_K)
    at = row.to(tl.int64)[:, None] * TOP_K + choice
    tl.store(weights_ptr + at, weights.to(weights_ptr.dtype.element_ty), there)
    tl.store(index_ptr + at, index.to(tl.int64), there)


@triton.jit
def _backward(
    of_weights_ptr, logits_ptr, index_ptr, of_logits_ptr, rows, experts,
    TOP_K: tl.constexpr, NORMED: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    first, expert = tl.program_id(0) * ROWS, tl.arange(0, BLOCK)[None, :]
    row = first + tl.arange(0, ROWS)
    _, probability = probabilities(logits_ptr, first, rows, experts, BLOCK, ROWS)
    gradient, chosen = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.int1)
    for number in range(TOP_K):
        at = row.to(tl.int64) * TOP_K + number
        here = expert == tl.load(index_ptr + at, mask=row < rows, other=0)[:, None]
        of_weight = tl.load(of_weights_ptr + at, mask=row < rows, other=0.0).to(tl.float32)[:, None]
        gradient, chosen = tl.where(here, of_weight, gradient), chosen | here
    if NORMED:
        probability = tl.where(chosen, probability, 0.0)
        probability /= tl.sum(probability, axis=1)[:, None]
    of_logits = probability * (gradient - tl.sum(gradient * probability, axis=1)[:, None])
    there = (row < rows)[:, None] & (expert < experts)
    at = row.to(tl.int64)[:, None] * experts + expert
    tl.store(of_logits_ptr + at, of_logits.to(of_logits_ptr.dtype.element_ty), there)


def _launch(experts: int) -> dict[str, int]:
    block = power_of_two(experts)
    return {"BLOCK": block, "ROWS": max(1, TILE // block), "num_warps": WARPS}


def _empty_choice(logits: Tensor, top_k: int, normed: bool) -> tuple[Tensor, Tensor]:
    shape = logits.shape[0], top_k
    return logits.new_empty(shape), logits.new_empty(shape, dtype=torch.int64)


def _empty_gradient(of_weights: Tensor, logits: Tensor, index: Tensor, normed: bool) -> Tensor:
    return empty_like(logits)


@lean_op("triton_moe_router_backward", fake=_empty_gradient)
def _gradient(of_weights: Tensor, logits: Tensor, index: Tensor, normed: bool) -> Tensor:
    of_logits, (rows, experts), launch = empty_like(logits), logits.shape, _launch(logits.shape[1])
    if rows:
        _backward[(blocks_of(launch["ROWS"], rows),)](
            of_weights.contiguous(), logits.contiguous(), index, of_logits, rows, experts,
            TOP_K=index.shape[1], NORMED=normed, **launch,
        )  # fmt: skip
    return of_logits


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, _, ctx.normed = inputs
    ctx.save_for_backward(logits, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, of_weights: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    return None if of_weights is None else _gradient(of_weights, *ctx.saved_tensors, ctx.normed), None, None


@differentiable_op("triton_moe_router", fake=_empty_choice, save=_save, differentiate=_differentiate)
def _choose(logits: Tensor, top_k: int, normed: bool) -> tuple[Tensor, Tensor]:
    weights, index = _empty_choice(logits, top_k, normed)
    (rows, experts), launch = logits.shape, _launch(logits.shape[1])
    if rows:
        _forward[(blocks_of(launch["ROWS"], rows),)](
            logits.contiguous(), weights, index, rows, experts,
            TOP_K=top_k, NORMED=normed, CHOICES=power_of_two(top_k), **launch,
        )  # fmt: skip
    return weights, index


def moe_router(router_logits: Tensor, top_k: int, norm_topk_prob: bool) -> tuple[Tensor, Tensor]:
    """As eager; of equal logits the first is chosen, and more choices than experts are a ValueError."""
    if top_k > router_logits.shape[1]:
        raise ValueError(f"moe_router: triton cannot choose {top_k} of {router_logits.shape[1]} experts")
    chosen: tuple[Tensor, Tensor] = _choose(router_logits, top_k, norm_topk_prob)
    return chosen
