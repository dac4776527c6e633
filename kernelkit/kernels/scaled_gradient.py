"""The backward of a kernel that has computed its gradients in the forward."""

from __future__ import annotations

import torch
from torch import Tensor

from kernelkit.kernels.custom_op import custom_op


def _empty_product(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return gradient.new_empty(gradient.shape, dtype=dtype)


@custom_op("scaled_gradient", fake=_empty_product)
def scaled_gradient(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """``gradient * factor``, rounded once to ``dtype``; ``gradient`` stays, so that a second backward finds it.

    Args:
        gradient: of a sum, any shape, usually float32.
        factor: scalar tensor, what the backward is given for that sum.
        dtype: of the result, that of the tensor whose gradient it is.
    """
    return torch.mul(gradient, factor, out=_empty_product(gradient, factor, dtype))


def refuse_create_graph(op: str) -> None:
    """Called in a backward: raise where it is to be differentiated itself.

    What was computed in the forward would pass for a constant, and the second derivative be wrong without a word.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{op} computes its gradients in the forward, and they have no autograd formula of their own: "
            f"call backward without create_graph, or use {op}: eager."
        )
