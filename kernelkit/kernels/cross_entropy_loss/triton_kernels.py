"""Language-model head and cross-entropy by chunks of tokens in Triton, with the gradients computed in the forward.

Products are cuBLAS's, of sixteen bits to float32. What is elementwise is one program a row of logits, in two passes: one
for the softmax's statistics, and one that writes the gradient in the dtype of the head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelkit.kernels.chunked_head import ChunkOptions, HeadGradients, as_rows, buffer, counting_chunks, parts
from kernelkit.kernels.cross_entropy_loss.eager import project
from kernelkit.kernels.custom_op import custom_op
from kernelkit.kernels.head import Head
from kernelkit.kernels.matmul import mm
from kernelkit.kernels.scaled_gradient import register_scaled_gradients
from kernelkit.kernels.triton_head import LN_2, LOG2_E, LOWEST, head_chain, head_logits, log_sum, online
from kernelkit.ops.distillation_loss import per_item
from kernelkit.spec import Kernel

BLOCK, WARPS = 4096, 16


def cross_entropy_loss(options: ChunkOptions) -> Kernel:
    """The kernel. It waits for the device once a call, to learn how many labels count.

    Where logits are asked for, they come from a product of their own.
    """

    def kernel(
        hidden_states: Tensor,
        weight: Tensor,
        labels: Tensor,
        *,
        bias: Tensor | None = None,
        ignore_index: int = -100,
        num_items_in_batch: int | Tensor | None = None,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        targets = labels.reshape(-1).to(hidden_states.device)
        head = (*as_rows(hidden_states, weight), bias)
        wanted = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in head]
        chunk_size = options.tokens(weight.shape[0])
        total, *_ = _sum(*head, targets, softcap, float(logit_scale), ignore_index, chunk_size, wanted)
        loss = per_item(total, targets != ignore_index, num_items_in_batch)
        if not return_logits:
            return loss, None
        return loss, project(hidden_states, weight, bias, softcap=softcap, logit_scale=logit_scale)

    return kernel


@triton.jit
def _row(
    product,
    bias,
    labels,
    losses,
    gradient,
    stride,
    gradient_stride,
    vocabulary,
    scale,
    cap,
    TRAINED: tl.constexpr,
    BIASED: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The cross-entropy of a row, and its gradient, if TRAINED.

    The second pass goes backwards, so that it finds in the cache what the first one has left there.
    """
    row = tl.program_id(0).to(tl.int64)
    product += row * stride
    gradient += row * gradient_stride
    dtype = product.dtype.element_ty
    lanes = tl.arange(0, BLOCK)
    blocks = tl.cdiv(vocabulary, BLOCK)

    maxima = tl.full([BLOCK], LOWEST, dtype)
    sums = tl.zeros([BLOCK], dtype)
    for block in range(0, blocks):
        columns = block * BLOCK + lanes
        mask = columns < vocabulary
        logits = head_logits(product, bias, columns, mask, scale, cap, BIASED, CAPPED)
        maxima, sums = online(maxima, sums, tl.where(mask, logits, float("-inf")), LOG2_E)
    maximum = tl.max(maxima, axis=0)
    log = log_sum(maxima, sums, maximum, LOG2_E)

    label = tl.load(labels + row)
    inside = (label >= 0) & (label < vocabulary)
    # A label that is no token makes the loss nan, as reading past the row would not.
    of_label = tl.where(inside, head_logits(product, bias, label, inside, scale, cap, BIASED, CAPPED), float("nan"))
    tl.store(losses + row, maximum - of_label + log * LN_2)

    if TRAINED:
        for block in range(0, blocks):
            columns = (blocks - 1 - block) * BLOCK + lanes
            mask = columns < vocabulary
            logits = head_logits(product, bias, columns, mask, scale, cap, BIASED, CAPPED)
            of_logits = tl.exp2((logits - maximum) * LOG2_E - log) - (columns == label).to(dtype)
            of_product = head_chain(of_logits, logits, scale, cap, CAPPED)
            tl.store(gradient + columns, of_product.to(gradient.dtype.element_ty), mask=mask)


def _losses(head: Head, product: Tensor, labels: Tensor, losses: Tensor, gradient: Tensor | None) -> None:
    """Write the losses [N], and the gradient [N, V] if there is one, of the product [N, V]."""
    block = min(BLOCK, triton.next_power_of_2(product.shape[1]))
    _row[(product.shape[0],)](
        product,
        head.bias,
        labels,
        losses,
        product if gradient is None else gradient,
        product.stride(0),
        0 if gradient is None else gradient.stride(0),
        product.shape[1],
        head.logit_scale,
        head.softcap or 1.0,
        TRAINED=gradient is not None,
        BIASED=head.bias is not None,
        CAPPED=head.softcap is not None,
        BLOCK=block,
        num_warps=min(WARPS, max(1, block // 256)),
    )


def _empty_output(rows: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    shapes = (rows.shape, weight.shape, weight.shape[:1])
    of_rows, of_weight, of_bias = (
        rows.new_empty(shape if wanted else (0,), dtype=dtype) for shape, wanted in zip(shapes, others[-1], strict=True)
    )
    return rows.new_empty((), dtype=dtype), of_rows, of_weight, of_bias


@custom_op("triton_linear_cross_entropy", fake=_empty_output)
def _sum(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    softcap: float | None,
    logit_scale: float,
    ignore_index: int,
    chunk_size: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum over the labels [T] that count, and its gradients for rows [T, H], weight and bias, where ``wanted``."""
    total, of_rows, of_weight, of_bias = _empty_output(rows, weight, wanted)
    head = Head(weight, bias, softcap, logit_scale).ready()
    gradients = HeadGradients(head, of_rows, of_weight, of_bias, wanted)
    chunks = list(counting_chunks(labels, ignore_index, chunk_size))
    size, vocabulary = chunks[0].shape[0], weight.shape[0]
    part = next(iter(parts(size)), slice(0, 0)).stop
    product = buffer(rows, part, vocabulary, total.dtype)
    gradient = buffer(rows, size, vocabulary, head.weight.dtype) if any(wanted) else None
    losses = total.new_empty(size)
    total.zero_()
    # A custom operator hides nothing from autocast, which would round what is multiplied here to sixteen bits.
    with torch.autocast(labels.device.type, enabled=False):
        for positions in chunks:
            some_rows, targets = rows[positions], labels[positions]
            for some in parts(positions.shape[0]):
                _losses(
                    head,
                    mm(some_rows[some], head.weight.t(), product[: some.stop - some.start]),
                    targets[some],
                    losses[some],
                    None if gradient is None else gradient[some],
                )
            total += losses[: positions.shape[0]].sum()
            if gradient is not None:
                gradients.add(gradient[: positions.shape[0]], some_rows, positions)
    gradients.finish()
    return total, of_rows, of_weight, of_bias


register_scaled_gradients(_sum, "cross_entropy_loss")
