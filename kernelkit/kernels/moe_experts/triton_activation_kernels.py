"""The experts' activation in Triton: what its forward needs inside of a product, and its backward, which is a pass.

Inside of the product before it the backward was slower on an H100, 1.2 ms instead of 1.0 at 131072 rows of 768.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelkit.kernels.triton_head import LOG2_E, NATIVE
from kernelkit.kernels.triton_launch import blocks_of, power_of_two


@triton.jit
def sigmoid(x):
    """Without the care that a division takes of its range: what is divided by is never below 1."""
    above = 1.0 + tl.exp2(x * -LOG2_E)
    if NATIVE:
        inverse = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [above], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        inverse = 1.0 / above
    return inverse


@triton.jit
def clamped(gate, up, limit):
    """As torch clamps: what is no number stays none."""
    nan: tl.constexpr = tl.PropagateNan.ALL
    up = tl.minimum(tl.maximum(up, -limit, propagate_nan=nan), limit, propagate_nan=nan)
    return tl.minimum(gate, limit, propagate_nan=nan), up + 1.0


@triton.jit
def _pair(both, dtype: tl.constexpr):
    """A gate and its up from the 32 bits that they take together."""
    gate, up = both.to(tl.int16), (both >> 16).to(tl.int16)
    return gate.to(dtype, bitcast=True).to(tl.float32), up.to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def paired(gate, up):
    """Their 32 bits."""
    low = gate.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (up.to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def _of_activation(
    activated_ptr, weights_ptr, gate_up_ptr, order_ptr, ends_ptr, of_gate_up_ptr, shares_ptr,
    experts, width, alpha, limit, TURNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of gate and up, and of the routing weights; the weighted activation instead of its gradient."""
    dtype: tl.constexpr = activated_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < tl.load(ends_ptr + experts - 1)
    choice = tl.load(order_ptr + row, mask=there, other=0)
    routed = tl.load(weights_ptr + choice, mask=there, other=0.0).to(tl.float32)[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        mask = there[:, None] & (columns < width)[None, :]
        at = row[:, None] * width + columns[None, :]
        of_activated = tl.load(activated_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if TURNED:
            free_gate, free_up = _pair(
                tl.load(gate_up_ptr.to(tl.pointer_type(tl.int32)) + at, mask=mask, other=0), dtype
            )
            gate, up = clamped(free_gate, free_up, limit)
            share = sigmoid(gate * alpha)
            slope = share * (1.0 + alpha * gate * (1.0 - share))
        else:
            both = row[:, None] * (2 * width) + columns[None, :]
            gate = tl.load(gate_up_ptr + both, mask=mask, other=0.0).to(tl.float32)
            up = tl.load(gate_up_ptr + both + width, mask=mask, other=0.0).to(tl.float32)
            share = sigmoid(gate)
            slope = share * (1.0 + gate * (1.0 - share))
        activated, of_routed = up * gate * share, of_activated * routed
        total += of_activated * activated
        of_gate, of_up = of_routed * up * slope, of_routed * gate * share
        if TURNED:
            of_gate = tl.where(free_gate > limit, 0.0, of_gate)
            of_up = tl.where((free_up > limit) | (free_up < -limit), 0.0, of_up)
            pairs = of_gate_up_ptr.to(tl.pointer_type(tl.int32)) + at
            tl.store(pairs, paired(of_gate.to(dtype), of_up.to(dtype)), mask)
        else:
            tl.store(of_gate_up_ptr + both, of_gate.to(dtype), mask)
            tl.store(of_gate_up_ptr + both + width, of_up.to(dtype), mask)
        tl.store(activated_ptr + at, (activated * routed).to(dtype), mask)
    tl.store(shares_ptr + row, tl.sum(total, 1), there)


def of_activation(
    activated: Tensor, weights: Tensor, gate_up: Tensor, order: Tensor, ends: Tensor, of_gate_up: Tensor,
    clamp: list[float],
) -> Tensor:  # fmt: skip
    """Write the gradient of gate and up [S, 2I], and over the activation's gradient the weighted activation [S, I].

    Returns:
        [S] float32, the gradient of each row's routing weight, without the bias's.
    """
    rows, width = activated.shape
    shares = weights.new_empty(rows, dtype=torch.float32)
    _of_activation[(blocks_of(4, rows),)](
        activated, weights, gate_up, order, ends, of_gate_up, shares, len(ends), width, *(clamp or [0.0, 0.0]),
        TURNED=bool(clamp), ROWS=4, COLUMNS=min(256, power_of_two(width)), num_warps=4,
    )  # fmt: skip
    return shares
