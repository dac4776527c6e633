"""The experts on quack's grouped products: the dataflow of ``torch``, with the gather of the tokens inside.

Forward and the gradients of rows are products of variable length in M, the gradients of weights in K. The shapes of
tiles are quack's defaults, not measured at the first call.
"""

from __future__ import annotations

from typing import Any

from quack.gemm_interface import gemm
from torch import Tensor
from torch.nn import functional as F

from kernelkit.kernels.aligned import BYTES, aligned
from kernelkit.kernels.custom_op import custom_op
from kernelkit.kernels.moe_experts import torch as grouped
from kernelkit.kernels.moe_experts.torch import Products, Scattered


def _empty_product(rows: Tensor, weight: Tensor, ends: Tensor, tokens: Tensor | None) -> Tensor:
    return rows.new_empty((rows if tokens is None else tokens).shape[0], weight.shape[2])


@custom_op("quack_grouped_mm_forward_and_backward", fake=_empty_product)
def _mm(rows: Tensor, weight: Tensor, ends: Tensor, tokens: Tensor | None) -> Tensor:
    return gemm(  # type: ignore[no-any-return]  # untyped in quack
        aligned(rows), _in_rows_or_columns(weight), cu_seqlens_m=_starts(ends), A_idx=_index(tokens), tuned=False
    )


def _empty_outer(
    rows: Tensor, others: Tensor, ends: Tensor, rows_of: Tensor | None, others_of: Tensor | None
) -> Tensor:
    return rows.new_empty(ends.shape[0], rows.shape[1], others.shape[1])


@custom_op("quack_grouped_outer_backward", fake=_empty_outer)
def _outer(rows: Tensor, others: Tensor, ends: Tensor, rows_of: Tensor | None, others_of: Tensor | None) -> Tensor:
    product = _empty_outer(rows, others, ends, rows_of, others_of)
    left, right, out, index = aligned(rows), aligned(others), product, rows_of
    if others_of is not None:  # quack gathers the left operand alone, and writes columns as well as rows
        left, right, out, index = right, left, product.mT, others_of
    gemm(left.t(), right, out=out, cu_seqlens_k=_starts(ends), A_idx=_index(index), tuned=False)
    return product


def _starts(ends: Tensor) -> Tensor:
    return F.pad(ends, (1, 0))


def _index(tokens: Tensor | None) -> Tensor | None:
    return None if tokens is None else tokens.int()


def _in_rows_or_columns(weight: Tensor) -> Tensor:
    """``weight`` [E, H, I] in rows or columns of neighbours that begin at multiples of sixteen bytes, as tiles must."""
    down, right = weight.stride()[1:]
    step = BYTES // weight.element_size()
    fits = 1 in (down, right) and all(stride and stride % step == 0 for stride in weight.stride() if stride != 1)
    return weight if fits and weight.data_ptr() % BYTES == 0 else aligned(weight)


def _unpacked(rows: Tensor | Scattered) -> tuple[Tensor, Tensor | None]:
    return (rows.states, rows.tokens) if isinstance(rows, Scattered) else (rows, None)


def _grouped_mm(rows: Tensor | Scattered, weight: Tensor, ends: Tensor) -> Tensor:
    states, tokens = _unpacked(rows)
    return _mm(states, weight, ends, tokens)  # type: ignore[no-any-return]  # an operator has no types


def _grouped_outer(rows: Tensor | Scattered, others: Tensor | Scattered, ends: Tensor) -> Tensor:
    (left, rows_of), (right, others_of) = _unpacked(rows), _unpacked(others)
    return _outer(left, right, ends, rows_of, others_of)  # type: ignore[no-any-return]  # as above


QUACK = Products("quack", _grouped_mm, _grouped_outer, gather=True)


def moe_experts(
    hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """See ``torch``.

    Raises:
        ValueError: for sizes that are no multiples of 8, which quack's copies need.
    """
    _check(gate_up_proj, down_proj)
    return grouped.moe_experts(hidden_states, top_k_index, top_k_weights, gate_up_proj, down_proj, products=QUACK)


def gpt_oss(
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    *rest: Any,
    **keywords: Any,
) -> Tensor:
    """The same for the experts of gpt-oss."""
    _check(gate_up_proj, down_proj)
    return grouped.gpt_oss(
        hidden_states, top_k_index, top_k_weights, gate_up_proj, down_proj, *rest, **keywords, products=QUACK
    )


def _check(gate_up_proj: Tensor, down_proj: Tensor) -> None:
    sizes = (*gate_up_proj.shape[1:], *down_proj.shape[1:])
    if any(size % 8 for size in sizes):
        raise ValueError(f"moe_experts: quack takes sizes that are multiples of 8, not {sizes}; name torch or triton")
