"""One matrix product for each group of rows. They have no gradient: what calls them differentiates by itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernelkit.kernels.custom_op import custom_op


def grouped_mm(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply the rows of group e, from ``ends[e - 1]`` to before ``ends[e]``, by ``weight[e]``.

    Rows from ``ends[-1]`` on belong to no group: their results are unwritten memory.

    Args:
        rows: [S, H], S > 0; float32, bfloat16 or float16.
        weight: [E, H, I], any strides, in the dtype of ``rows``. On a GPU torch asks for H and I that make multiples of
            16 bytes.
        ends: [E] int32, ascending.

    Returns:
        [S, I].
    """
    if rows.dtype == torch.bfloat16 and _has_rows_or_columns(weight):
        return F.grouped_mm(rows, weight, offs=ends)
    # torch computes the other dtypes too, but refuses to trace them; and inductor would leave out a copy of the weight.
    product: Tensor = _opaque(rows, weight, ends)
    return product


def grouped_outer(rows: Tensor, others: Tensor, ends: Tensor) -> Tensor:
    """Multiply the rows of each group, transposed, by the same rows of ``others``: the gradient of a weight.

    Args:
        rows: [S, H] and
        others: [S, I], contiguous, S > 0; those from ``ends[-1]`` on are not read.
        ends: as for ``grouped_mm``.

    Returns:
        [E, H, I], zero for a group without rows.
    """
    # An operator for every dtype: inductor would write the transposed rows in strides that torch then refuses.
    product: Tensor = _outer(rows, others, ends)
    return product


def _has_rows_or_columns(weight: Tensor) -> bool:
    """Whether torch takes these strides: in each group, rows or columns of neighbouring numbers."""
    (height, width), (down, right) = weight.shape[1:], weight.stride()[1:]
    return (right == 1 and down >= width) or (down == 1 and right >= height)


def _empty_product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[2])


@custom_op("grouped_mm_forward_and_backward", fake=_empty_product)
def _opaque(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return F.grouped_mm(rows, weight if _has_rows_or_columns(weight) else weight.contiguous(), offs=ends)


def _empty_outer(rows: Tensor, others: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(ends.shape[0], rows.shape[1], others.shape[1])


@custom_op("grouped_outer_backward", fake=_empty_outer)
def _outer(rows: Tensor, others: Tensor, ends: Tensor) -> Tensor:
    return F.grouped_mm(rows.t(), others, offs=ends)
