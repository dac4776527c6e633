"""What Liger's normalisations for different devices have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernelkit.kernels.lean_op import differentiable_op, lean_op
from kernelkit.spec import Kernel

LLAMA, GEMMA = 0, 1
"""Liger's casting modes: round before the weight, or once at the end."""


def variants(
    name: str, forward: Callable[..., tuple[Tensor, Tensor]], backward: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Kernel, Kernel, Kernel]:
    """The variants ``standard``, ``zero_centered`` and ``fp32_weight`` from one pair of launchers.

    Args:
        name: of the operator that is registered.
        forward: takes contiguous rows [N, H] with N > 0, weight [H], eps, an offset of the weight, and a casting mode;
            returns the rows, normalised, and their reciprocal roots [N].
        backward: takes the gradient of the rows, then rows, weight, roots, offset and casting mode, and leaves them as
            they are; returns the gradients of rows and weight.
    """

    def empty_output(
        hidden_states: Tensor, weight: Tensor, eps: float, offset: float, casting: int
    ) -> tuple[Tensor, Tensor]:
        roots = hidden_states.new_empty(math.prod(hidden_states.shape[:-1]), dtype=torch.float32)
        return hidden_states.new_empty(hidden_states.shape), roots

    def empty_gradients(
        gradient: Tensor, hidden_states: Tensor, weight: Tensor, roots: Tensor, offset: float, casting: int
    ) -> tuple[Tensor, Tensor]:
        return hidden_states.new_empty(hidden_states.shape), weight.new_empty(weight.shape)

    @lean_op(f"{name}_backward", fake=empty_gradients)
    def gradients(
        gradient: Tensor, hidden_states: Tensor, weight: Tensor, roots: Tensor, offset: float, casting: int
    ) -> tuple[Tensor, Tensor]:
        if hidden_states.numel() == 0:
            return hidden_states.new_empty(hidden_states.shape), weight.new_zeros(weight.shape)
        rows = _rows(hidden_states)
        of_rows, of_weight = backward(_rows(gradient), rows, weight.contiguous(), roots, offset, casting)
        return of_rows.view(hidden_states.shape), of_weight

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        hidden_states, weight, _, ctx.offset, ctx.casting = inputs
        ctx.save_for_backward(hidden_states, weight, output[1])
        ctx.mark_non_differentiable(output[1])

    def differentiate(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        return *gradients(gradient, *ctx.saved_tensors, ctx.offset, ctx.casting), None, None, None

    @differentiable_op(name, fake=empty_output, save=save, differentiate=differentiate)
    def normalise(
        hidden_states: Tensor, weight: Tensor, eps: float, offset: float, casting: int
    ) -> tuple[Tensor, Tensor]:
        if hidden_states.numel() == 0:
            return empty_output(hidden_states, weight, eps, offset, casting)
        output, roots = forward(_rows(hidden_states), weight.contiguous(), eps, offset, casting)
        return output.view(hidden_states.shape), roots

    def call(hidden_states: Tensor, weight: Tensor, eps: float, offset: float, casting: int) -> Tensor:
        output: Tensor
        output, _ = normalise(hidden_states, weight, eps, offset, casting)
        return output

    def standard(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
        if weight.dtype == hidden_states.dtype:
            return call(hidden_states, weight, eps, 0.0, LLAMA)
        # Liger would round the product to the dtype of the input.
        return weight * call(hidden_states, torch.ones_like(weight, dtype=hidden_states.dtype), eps, 0.0, LLAMA)

    def zero_centered(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
        return call(hidden_states, weight, eps, 1.0, GEMMA)

    def fp32_weight(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
        return call(hidden_states, weight, eps, 0.0, GEMMA)

    return standard, zero_centered, fp32_weight


def _rows(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1, tensor.shape[-1])
