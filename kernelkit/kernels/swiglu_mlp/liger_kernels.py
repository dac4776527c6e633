"""Liger's gated activations as pure kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from liger_kernel.ops.geglu import geglu_backward, geglu_forward
from liger_kernel.ops.swiglu import swiglu_backward, swiglu_forward
from torch import Tensor

from kernelkit.kernels.lean_op import differentiable_op, lean_op
from kernelkit.spec import Kernel


def _pure(name: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> Kernel:
    def empty_output(gate: Tensor, up: Tensor) -> Tensor:
        return gate.new_empty(gate.shape)

    def empty_gradients(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        return gate.new_empty(gate.shape), up.new_empty(up.shape)

    @lean_op(f"{name}_backward", fake=empty_gradients)
    def gradients(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        if gate.numel() == 0:
            return empty_gradients(gradient, gate, up)
        # The kernel writes the gradients over its inputs.
        own_gate, own_up = (tensor.clone(memory_format=torch.contiguous_format) for tensor in (gate, up))
        of_gate, of_up = backward(own_gate, own_up, gradient.contiguous())
        return of_gate, of_up

    def save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        of_gate, of_up = gradients(gradient, *ctx.saved_tensors)
        return of_gate, of_up

    @differentiable_op(name, fake=empty_output, save=save, differentiate=differentiate)
    def activate(gate: Tensor, up: Tensor) -> Tensor:
        if gate.numel() == 0:
            return empty_output(gate, up)
        _, _, output = forward(gate.contiguous(), up.contiguous())
        return output  # type: ignore[no-any-return]  # Liger has no types

    def kernel(gate: Tensor, up: Tensor) -> Tensor:
        output: Tensor = activate(gate, up)
        return output

    return kernel


silu = _pure("liger_silu_mul", swiglu_forward, swiglu_backward)
gelu_tanh = _pure("liger_gelu_mul", geglu_forward, geglu_backward)
