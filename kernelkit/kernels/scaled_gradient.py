"""The backward of a kernel that has computed its gradients in the forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef  # type: ignore[attr-defined]  # documented, but not in __all__

from kernelkit.kernels.custom_op import custom_op


def empty_product(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Unwritten, of the shape of ``gradient``."""
    return gradient.new_empty(gradient.shape, dtype=dtype)


@custom_op("scaled_gradient", fake=empty_product)
def scaled_gradient(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """``gradient * factor``, rounded once to ``dtype``; ``gradient`` stays, so that a second backward finds it.

    Args:
        gradient: of a sum, any shape, usually float32.
        factor: scalar tensor, what the backward is given for that sum.
        dtype: of the result, that of the tensor whose gradient it is.
    """
    return torch.mul(gradient, factor, out=empty_product(gradient, factor, dtype))


def refuse_create_graph(op: str) -> None:
    """Called in a backward: raise where it is to be differentiated itself.

    What was computed in the forward would pass for a constant, and the second derivative be wrong without a word.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{op} computes its gradients in the forward, and they have no autograd formula of their own: "
            f"call backward without create_graph, or use {op}: eager."
        )


def register_scaled_gradients(operator: CustomOpDef, op: str, scaled: Callable[..., Tensor] = scaled_gradient) -> None:
    """Give ``operator`` its backward, which multiplies what the forward has computed.

    Args:
        operator: its first output is the loss, the only one to be differentiated. Its last three outputs are the
            gradients of its first three inputs, a head's hidden states, weight and bias.
        op: the name to refuse ``create_graph`` in.
        scaled: an operator that does what ``scaled_gradient`` does.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output[-3:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs[:3]]
        # Else autograd would make zeros as large as the head for the gradient of its gradient.
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, factor: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if factor is None:
            return (None,) * len(ctx.needs_input_grad)
        refuse_create_graph(op)
        saved = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad, strict=False)
        of_inputs = [scaled(gradient, factor, dtype) if needed else None for gradient, dtype, needed in saved]
        return *of_inputs, *[None] * (len(ctx.needs_input_grad) - 3)

    operator.register_autograd(differentiate, setup_context=save)
