"""What the Triton kernels of a router have in common: probabilities of rows, and the choice of the largest."""

from __future__ import annotations

import triton
import triton.language as tl

CHOSEN: tl.constexpr = tl.constexpr(-(2**31))
"""The rank of what is chosen already, and of what is no expert."""


@triton.jit
def probabilities(logits, first, rows, experts, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Those of the rows from ``first`` on, [TILE, BLOCK], after the logits; off the tensor both mean nothing."""
    row, expert = first + tl.arange(0, TILE), tl.arange(0, BLOCK)
    there = (row < rows)[:, None] & (expert < experts)[None, :]
    values = tl.load(logits + row.to(tl.int64)[:, None] * experts + expert[None, :], mask=there, other=0.0)
    values = tl.where((expert < experts)[None, :], values.to(tl.float32), float("-inf"))
    powers = tl.exp(values - tl.max(values, axis=1)[:, None])
    return values, powers / tl.sum(powers, axis=1)[:, None]


@triton.jit
def ranks(values, experts, BLOCK: tl.constexpr):
    """Integers in the order of the float32 ``values`` [TILE, BLOCK], which leave one below all of them."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)
    return tl.where((tl.arange(0, BLOCK) < experts)[None, :], tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), CHOSEN)
