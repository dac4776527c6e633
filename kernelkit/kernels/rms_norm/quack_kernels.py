"""Quack's RMS normalisation as pure kernels.

The variants differ in an offset and in the dtype of the result: quack multiplies by the weight in float32 and rounds
once, where ``standard`` would round before the weight too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from quack.rmsnorm import rmsnorm_bwd, rmsnorm_fwd
from torch import Tensor

from kernelkit.kernels.aligned import aligned
from kernelkit.kernels.lean_op import differentiable_op, lean_op


def _rows(tensor: Tensor) -> Tensor:
    """[N, H]. Quack copies four bytes at least, which rows of an odd number of sixteen bits do not let it."""
    rows = aligned(tensor).view(-1, tensor.shape[-1])
    return rows.float() if rows.shape[1] % 2 else rows


def _dtype(states: Tensor, weight: Tensor, promoted: bool) -> torch.dtype:
    return torch.promote_types(states.dtype, weight.dtype) if promoted else states.dtype


def _empty_output(states: Tensor, weight: Tensor, eps: float, offset: float, promoted: bool) -> tuple[Tensor, Tensor]:
    roots = states.new_empty(math.prod(states.shape[:-1]), dtype=torch.float32)
    return states.new_empty(states.shape, dtype=_dtype(states, weight, promoted)), roots


def _empty_gradients(
    gradient: Tensor, states: Tensor, weight: Tensor, roots: Tensor, offset: float
) -> tuple[Tensor, Tensor]:
    return states.new_empty(states.shape), weight.new_empty(weight.shape)


@lean_op("quack_rms_norm_backward", fake=_empty_gradients)
def _gradients(gradient: Tensor, states: Tensor, weight: Tensor, roots: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    if states.numel() == 0:
        return states.new_empty(states.shape), weight.new_zeros(weight.shape)
    of_rows, of_weight, _, _ = rmsnorm_bwd(_rows(states), aligned(weight), _rows(gradient), roots, weight_offset=offset)
    return of_rows.to(states.dtype).view(states.shape), of_weight


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    states, weight, _, ctx.offset, _ = inputs
    ctx.save_for_backward(states, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return *_gradients(gradient, *ctx.saved_tensors, ctx.offset), None, None, None


@differentiable_op("quack_rms_norm", fake=_empty_output, save=_save, differentiate=_differentiate)
def _normalise(states: Tensor, weight: Tensor, eps: float, offset: float, promoted: bool) -> tuple[Tensor, Tensor]:
    """The rows, normalised, in the promoted dtype or in their own, and their reciprocal roots [N]."""
    if states.numel() == 0:
        return _empty_output(states, weight, eps, offset, promoted)
    dtype = _dtype(states, weight, promoted)
    normed, _, roots = rmsnorm_fwd(
        _rows(states), aligned(weight), out_dtype=dtype, eps=eps, store_rstd=True, weight_offset=offset
    )
    return normed.view(states.shape), roots


def standard(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In float32 until the end."""
    return _normalise(hidden_states, weight, eps, 0.0, True)[0]  # type: ignore[no-any-return]  # an operator has no types


def zero_centered(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """1 + weight, in float32."""
    return _normalise(hidden_states, weight, eps, 1.0, False)[0]  # type: ignore[no-any-return]  # as above


def fp32_weight(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In float32 until the end."""
    return _normalise(hidden_states, weight, eps, 0.0, False)[0]  # type: ignore[no-any-return]  # as above
