"""Gated activations in Triton, element by element: only gate and up are kept for the backward."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernelkit.kernels.lean_op import differentiable_op, lean_op
from kernelkit.kernels.swiglu_mlp.eager import ALPHA, LIMIT
from kernelkit.kernels.triton_launch import blocks_of, empty_like
from kernelkit.spec import Kernel

BLOCK, WARPS = 1024, 4

_SILU, _GELU_TANH, _CLAMPED = (tl.constexpr(kind) for kind in range(3))
_LIMIT, _ALPHA = tl.constexpr(LIMIT), tl.constexpr(ALPHA)
# gelu(x) = x * (1 + tanh(z)) / 2 = x * sigmoid(2 z), with 2 z = sqrt(8 / pi) * (x + 0.044715 x^3).
_GELU_LINEAR, _GELU_CUBIC = tl.constexpr(1.5957691216057308), tl.constexpr(0.07135481282052434)


@triton.jit
def _forward(gate_ptr, up_ptr, output_ptr, elements, KIND: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < elements
    dtype: tl.constexpr = gate_ptr.dtype.element_ty
    gate = tl.load(gate_ptr + at, mask=there, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=there, other=0.0).to(tl.float32)
    # Each step is rounded as torch rounds it.
    if KIND == _SILU:
        activated = gate * tl.sigmoid(gate)
    elif KIND == _GELU_TANH:
        # 1 + tanh(z) and not 2 sigmoid(2 z), which would keep digits of small values that torch's formula loses.
        tanh = 2.0 * tl.sigmoid(gate * (_GELU_LINEAR + _GELU_CUBIC * gate * gate)) - 1.0
        activated = 0.5 * gate * (1.0 + tanh)
    else:
        gate = tl.where(gate > _LIMIT, _LIMIT, gate)
        up = tl.where(up > _LIMIT, _LIMIT, tl.where(up < -_LIMIT, -_LIMIT, up))
        up = (up + 1.0).to(dtype).to(tl.float32)
        activated = gate * tl.sigmoid((gate * _ALPHA).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    activated = activated.to(dtype).to(tl.float32)
    tl.store(output_ptr + at, (activated * up).to(output_ptr.dtype.element_ty), mask=there)


@triton.jit
def _backward(
    of_output_ptr, gate_ptr, up_ptr, of_gate_ptr, of_up_ptr, elements, KIND: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < elements
    of_output = tl.load(of_output_ptr + at, mask=there, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, mask=there, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=there, other=0.0).to(tl.float32)
    of_gate, of_up = of_output, of_output
    # Every activation is gate * s with s = sigmoid(p(gate)); its slope is s + gate * s * (1 - s) * p'(gate).
    if KIND == _SILU:
        share = tl.sigmoid(gate)
        slope = share * (1.0 + gate * (1.0 - share))
    elif KIND == _GELU_TANH:
        square = gate * gate
        exponent = gate * (_GELU_LINEAR + _GELU_CUBIC * square)
        share = tl.sigmoid(exponent)
        # 1 - share would lose the digits that the derivative of the exponent, a large number, brings out.
        slope = share * (1.0 + gate * tl.sigmoid(-exponent) * (_GELU_LINEAR + 3.0 * _GELU_CUBIC * square))
    else:
        of_gate = tl.where(gate > _LIMIT, 0.0, of_gate)
        of_up = tl.where((up > _LIMIT) | (up < -_LIMIT), 0.0, of_up)
        gate = tl.where(gate > _LIMIT, _LIMIT, gate)
        up = tl.where(up > _LIMIT, _LIMIT, tl.where(up < -_LIMIT, -_LIMIT, up)) + 1.0
        share = tl.sigmoid(gate * _ALPHA)
        slope = share * (1.0 + gate * (1.0 - share) * _ALPHA)
    tl.store(of_gate_ptr + at, (of_gate * up * slope).to(of_gate_ptr.dtype.element_ty), mask=there)
    tl.store(of_up_ptr + at, (of_up * gate * share).to(of_up_ptr.dtype.element_ty), mask=there)


def _empty_output(gate: Tensor, up: Tensor, kind: int) -> Tensor:
    return empty_like(gate)


def _empty_gradients(of_output: Tensor, gate: Tensor, up: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    return empty_like(gate), empty_like(up)


@lean_op("triton_swiglu_mlp_backward", fake=_empty_gradients)
def _gradients(of_output: Tensor, gate: Tensor, up: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    of_gate, of_up = _empty_gradients(of_output, gate, up, kind)
    if elements := gate.numel():
        _backward[(blocks_of(BLOCK, elements),)](
            of_output.contiguous(), gate.contiguous(), up.contiguous(), of_gate, of_up, elements,
            KIND=kind, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return of_gate, of_up


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, up, ctx.kind = inputs
    ctx.save_for_backward(gate, up)


def _differentiate(ctx: Any, of_output: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(of_output, *ctx.saved_tensors, ctx.kind), None


@differentiable_op("triton_swiglu_mlp", fake=_empty_output, save=_save, differentiate=_differentiate)
def _activate(gate: Tensor, up: Tensor, kind: int) -> Tensor:
    output = _empty_output(gate, up, kind)
    if elements := gate.numel():
        _forward[(blocks_of(BLOCK, elements),)](
            gate.contiguous(), up.contiguous(), output, elements, KIND=kind, BLOCK=BLOCK, num_warps=WARPS
        )
    return output


def _kernel(kind: int) -> Kernel:
    def kernel(gate: Tensor, up: Tensor) -> Tensor:
        return _activate(gate, up, kind)  # type: ignore[no-any-return]  # an operator has no types

    return kernel


silu, gelu_tanh, clamped = (_kernel(kind.value) for kind in (_SILU, _GELU_TANH, _CLAMPED))
