"""The load balancing loss in Triton: one pass over each layer's logits forward, and one backward.

A layer leaves how often each expert was chosen and its summed probability, for every block of rows apart. They are
added up afterwards, without atomics, so that results repeat.
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

ROWS, TILE, WARPS = 64, 2048, 4
"""The rows of a program, and the numbers that it looks at at a time."""


def load_balancing_loss(
    router_logits: tuple[Tensor, ...], num_experts: int, top_k: int, attention_mask: Tensor | None = None
) -> Tensor:
    """As eager, but the choice is by the logits in float32, and of equal ones by the lowest index.

    It raises a ValueError for more choices than experts, and for a mask of another number of rows.
    """
    device = router_logits[0].device
    weights = None if attention_mask is None else attention_mask.reshape(-1).to(device, torch.float32)
    for logits in router_logits:
        _check(logits, weights, top_k)
    sums = torch.cat([_sums(logits.to(device), weights, top_k) for logits in router_logits]).sum(0)
    rows: Any = len(router_logits) * weights.sum() if weights is not None else sum(map(len, router_logits))
    counts, probabilities = sums.unbind()
    return torch.sum((counts / rows) * (probabilities / rows)) * num_experts


def _check(logits: Tensor, weights: Tensor | None, top_k: int) -> None:
    rows, experts = logits.shape
    if top_k > experts:
        raise ValueError(f"load_balancing_loss: triton cannot choose {top_k} of {experts} experts")
    if weights is not None and weights.shape[0] != rows:
        raise ValueError(f"load_balancing_loss: the attention mask has {weights.shape[0]} rows, the logits {rows}")


@triton.jit
def _weights(weights, first, rows, WEIGHTED: tl.constexpr, TILE: tl.constexpr):
    row = first + tl.arange(0, TILE)
    there = row < rows
    weight = tl.load(weights + row, mask=there, other=0.0) if WEIGHTED else there.to(tl.float32)
    return weight[:, None]


@triton.jit
def _forward(
    logits, weights, sums, rows, experts,
    TOP_K: tl.constexpr, WEIGHTED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    expert = tl.arange(0, BLOCK)
    counts = tl.zeros((TILE, BLOCK), dtype=tl.float32)
    total = tl.zeros((TILE, BLOCK), dtype=tl.float32)
    for step in range(ROWS // TILE):
        first = program * ROWS + step * TILE
        values, probability = probabilities(logits, first, rows, experts, BLOCK, TILE)
        weight = _weights(weights, first, rows, WEIGHTED, TILE)
        order = ranks(values, experts, BLOCK)
        for _ in range(TOP_K):
            best = expert[None, :] == tl.argmax(order, axis=1)[:, None]
            counts += tl.where(best, weight, 0.0)
            order = tl.where(best, CHOSEN, order)
        total += probability * weight
    sums += program.to(tl.int64) * 2 * experts + expert
    tl.store(sums, tl.sum(counts, axis=0), mask=expert < experts)
    tl.store(sums + experts, tl.sum(total, axis=0), mask=expert < experts)


@triton.jit
def _backward(
    of_probabilities, logits, weights, gradient, of_stride, of_expert_stride, rows, experts,
    WEIGHTED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    expert = tl.arange(0, BLOCK)
    of_probabilities += program.to(tl.int64) * of_stride
    of_sum = tl.load(of_probabilities + expert * of_expert_stride, mask=expert < experts, other=0.0)[None, :]
    for step in range(ROWS // TILE):
        first = program * ROWS + step * TILE
        _, probability = probabilities(logits, first, rows, experts, BLOCK, TILE)
        mean = tl.sum(probability * of_sum, axis=1)[:, None]
        of_logits = probability * (of_sum - mean) * _weights(weights, first, rows, WEIGHTED, TILE)
        row = first + tl.arange(0, TILE)
        there = (row < rows)[:, None] & (expert < experts)[None, :]
        at = gradient + row.to(tl.int64)[:, None] * experts + expert[None, :]
        tl.store(at, of_logits.to(gradient.dtype.element_ty), mask=there)


def _launch(experts: int) -> dict[str, int]:
    block = power_of_two(experts)
    return {"ROWS": ROWS, "BLOCK": block, "TILE": min(ROWS, max(1, TILE // block)), "num_warps": WARPS}


def _empty_sums(logits: Tensor, weights: Tensor | None, top_k: int) -> Tensor:
    return logits.new_empty(blocks_of(ROWS, logits.shape[0]), 2, logits.shape[1], dtype=torch.float32)


def _empty_gradient(of_sums: Tensor, logits: Tensor, weights: Tensor | None) -> Tensor:
    return empty_like(logits)


@lean_op("triton_router_sums_backward", fake=_empty_gradient)
def _gradient(of_sums: Tensor, logits: Tensor, weights: Tensor | None) -> Tensor:
    gradient, of_probabilities = empty_like(logits), of_sums[:, 1]
    rows, experts = logits.shape
    if rows:
        _backward[(blocks_of(ROWS, rows),)](
            of_probabilities, logits.contiguous(), logits if weights is None else weights, gradient,
            *of_probabilities.stride(), rows, experts, WEIGHTED=weights is not None, **_launch(experts),
        )  # fmt: skip
    return gradient


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _differentiate(ctx: Any, of_sums: Tensor) -> tuple[Tensor | None, ...]:
    return _gradient(of_sums, *ctx.saved_tensors), None, None


@differentiable_op("triton_router_sums", fake=_empty_sums, save=_save, differentiate=_differentiate)
def _sums(logits: Tensor, weights: Tensor | None, top_k: int) -> Tensor:
    """Of logits [T, E], weighted by rows [T]: choices and probabilities [N, 2, E] of each block of ROWS rows."""
    sums = _empty_sums(logits, weights, top_k)
    rows, experts = logits.shape
    if rows:
        _forward[(blocks_of(ROWS, rows),)](
            logits.contiguous(), logits if weights is None else weights, sums, rows, experts,
            TOP_K=top_k, WEIGHTED=weights is not None, **_launch(experts),
        )  # fmt: skip
    return sums
