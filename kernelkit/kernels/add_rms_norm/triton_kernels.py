"""A residual added and normalised in Triton, by the kernels of ``rms_norm``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernelkit.kernels.lean_op import differentiable_op, lean_op
from kernelkit.kernels.passed_by import weight_and_eps
from kernelkit.kernels.rms_norm.triton_kernels import launch_backward, launch_forward, outputs_like
from kernelkit.kernels.triton_launch import empty_like
from kernelkit.ops.norms import Norm
from kernelkit.spec import Kernel


def _empty_output(
    states: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float, rounded: bool
) -> tuple[Tensor, Tensor]:
    return outputs_like(states, residual, weight, rounded)


def _empty_gradients(
    of_normed: Tensor, of_total: Tensor | None, total: Tensor, weight: Tensor, eps: float, offset: float, rounded: bool
) -> tuple[Tensor, Tensor]:
    return empty_like(total), empty_like(weight)


@lean_op("triton_add_rms_norm_backward", fake=_empty_gradients)
def _gradients(
    of_normed: Tensor, of_total: Tensor | None, total: Tensor, weight: Tensor, eps: float, offset: float, rounded: bool
) -> tuple[Tensor, Tensor]:
    return launch_backward(of_normed, of_total, total, weight, eps, offset, rounded)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    states, residual, weight, *ctx.settings = inputs
    ctx.dtypes = states.dtype, residual.dtype
    ctx.save_for_backward(output[0], weight)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, of_total: Tensor | None, of_normed: Tensor | None) -> tuple[Tensor | None, ...]:
    if of_normed is None:
        if of_total is None:
            return (None,) * 6
        of_normed = torch.zeros_like(of_total)
    of_sum, of_weight = _gradients(of_normed, of_total, *ctx.saved_tensors, *ctx.settings)
    return *(of_sum.to(dtype) for dtype in ctx.dtypes), of_weight, None, None, None


@differentiable_op("triton_add_rms_norm", fake=_empty_output, save=_save, differentiate=_differentiate)
def _add_and_normalise(
    states: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float, rounded: bool
) -> tuple[Tensor, Tensor]:
    return launch_forward(states, residual, weight, eps, offset, rounded)


def _kernel(offset: float, rounded: bool) -> Kernel:
    def kernel(hidden_states: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        weight, eps = weight_and_eps(norm, "add_rms_norm")
        return _add_and_normalise(hidden_states, residual, weight, eps, offset, rounded)  # type: ignore[no-any-return]  # an operator has no types

    return kernel


standard, zero_centered, fp32_weight = _kernel(0.0, True), _kernel(1.0, False), _kernel(0.0, False)
