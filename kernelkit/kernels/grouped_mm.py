"""One matrix product for each group of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernelkit.kernels.custom_op import custom_op


def grouped_mm(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply the rows of group e, from ``ends[e - 1]`` to before ``ends[e]``, by ``weight[e]``.

    Rows from ``ends[-1]`` on belong to no group: their results are unwritten memory, and so are their gradients.

    Args:
        rows: [S, H], S > 0; float32, bfloat16 or float16.
        weight: [E, H, I], any strides, in the dtype of ``rows``. On a GPU torch asks for H and I that make multiples of
            16 bytes.
        ends: [E] int32, ascending.

    Returns:
        [S, I].
    """
    if rows.dtype == torch.bfloat16:
        return F.grouped_mm(rows, weight, offs=ends)
    # torch computes the other dtypes too, but refuses to trace them.
    product: Tensor = _opaque(rows, weight, ends)
    return product


def _empty_product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[2])


@custom_op("grouped_mm", fake=_empty_product)
def _opaque(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return F.grouped_mm(rows, weight, offs=ends)


def _empty_gradients(gradient: Tensor, rows: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), weight.new_empty(weight.shape)


@custom_op("grouped_mm_backward", fake=_empty_gradients)
def _opaque_backward(gradient: Tensor, rows: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    gradient = gradient.contiguous()  # that of a sum has strides of zero, which torch refuses
    of_rows = F.grouped_mm(gradient, weight.transpose(1, 2), offs=ends)
    of_weight = F.grouped_mm(rows.t(), gradient, offs=ends)
    return of_rows, of_weight


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    of_rows, of_weight = _opaque_backward(gradient, *ctx.saved_tensors)
    return of_rows, of_weight, None


_opaque.register_autograd(_differentiate, setup_context=_save)
