"""Language-model head and cross-entropy by chunks of tokens in Triton, with the gradients computed in the forward.

Products are cuBLAS's, of sixteen bits to float32. What is elementwise is one kernel, whose programs share the rows:
they read the logits once, exchange the softmax's statistics, and write the gradient in the dtype of the head. In
bfloat16 on Hopper there is no such kernel and there are no logits: see ``triton_exponential_kernels``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelkit.kernels.chunked_head import (
    ChunkOptions,
    HeadGradients,
    as_rows,
    buffer,
    buffer_bytes,
    busy_chunks,
    default_chunk,
    part_size,
    parts,
    place,
)
from kernelkit.kernels.cross_entropy_loss.eager import project
from kernelkit.kernels.cross_entropy_loss.triton_exponential_kernels import (
    is_possible,
    place_scaled,
    suits,
    write_exponentials,
)
from kernelkit.kernels.custom_op import custom_op
from kernelkit.kernels.dtypes import without_autocast
from kernelkit.kernels.head import Head
from kernelkit.kernels.matmul import mm
from kernelkit.kernels.scaled_gradient import register_scaled_gradients
from kernelkit.kernels.triton_head import (
    LN_2,
    LOG2_E,
    LOWEST,
    Cut,
    arrive,
    cross_entropy,
    head_chain,
    head_logits,
    published,
    scaled_gradient,
    softmax_of_piece,
    softmax_of_pieces,
    stages,
    wait,
)
from kernelkit.kernels.triton_launch import power_of_two
from kernelkit.ops.distillation_loss import per_item
from kernelkit.spec import Kernel


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
        z_loss_coef: float = 0.0,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        targets = labels.reshape(-1).to(hidden_states.device)
        head = (*as_rows(hidden_states, weight), bias)
        wanted = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in head]
        how = softcap, float(logit_scale), float(z_loss_coef), ignore_index, options.chunk_size
        total, *_ = _sum(*head, targets, *how, wanted)
        loss = per_item(total, targets != ignore_index, num_items_in_batch)
        if not return_logits:
            return loss, None
        return loss, project(hidden_states, weight, bias, softcap=softcap, logit_scale=logit_scale)

    return kernel


CUT = Cut(block=4096, warps=8, registers=64)
"""The fastest of four on an H200."""

STATISTICS: tl.constexpr = tl.constexpr(0)
GRADIENT: tl.constexpr = tl.constexpr(1)


@triton.jit
def _piece(
    product,
    labels,
    partials,
    arrived,
    losses,
    gradient,
    stride,
    gradient_stride,
    vocabulary,
    pieces,
    bias,
    scale,
    cap,
    z_loss_coef,
    TRAINED: tl.constexpr,
    SQUARED: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECES: tl.constexpr,
):
    """A piece of a row, in the stages from FIRST to LAST: softmax statistics; the loss, and if TRAINED its gradient.

    If SQUARED, ``z_loss_coef`` times the square of the softmax's logarithmic normaliser is added to the loss.

    ``partials`` [N, 2, PIECES] holds what is published, maxima and sums.
    """
    program = tl.program_id(0)
    row, piece = (program // pieces).to(tl.int64), program % pieces
    columns = piece * BLOCK + tl.arange(0, BLOCK)
    mask = columns < vocabulary
    product += row * stride
    partials += row * 2 * PIECES
    dtype = product.dtype.element_ty
    logits = head_logits(product, columns, mask, bias, scale, cap)

    if FIRST == STATISTICS:
        maximum, _, total = softmax_of_piece(tl.where(mask, logits, float("-inf")), LOG2_E)
        tl.store(partials + piece, maximum)
        tl.store(partials + PIECES + piece, total)
        if LAST > STATISTICS:
            arrive(arrived + row)
            wait(arrived + row, pieces)

    if LAST == GRADIENT:
        index = tl.arange(0, PIECES)
        there = index < pieces
        maxima = published(partials + index, there, LOWEST)
        sums = published(partials + PIECES + index, there, 0.0)
        row_maximum, log = softmax_of_pieces(maxima, sums, LOG2_E)
        label = tl.load(labels + row)
        normaliser = row_maximum + log * LN_2
        if piece == 0:
            loss = cross_entropy(product, label, vocabulary, bias, scale, cap, row_maximum, log)
            if SQUARED:
                loss += z_loss_coef * normaliser * normaliser
            tl.store(losses + row, loss)
        if TRAINED:
            probability = tl.exp2((logits - row_maximum) * LOG2_E - log)
            if SQUARED:
                probability *= 1.0 + 2.0 * z_loss_coef * normaliser
            of_logits = probability - (columns == label).to(dtype)
            of_product = head_chain(of_logits, logits, scale, cap)
            gradient += row * gradient_stride
            tl.store(gradient + columns, of_product.to(gradient.dtype.element_ty), mask=mask)


def _losses(
    head: Head,
    product: Tensor,
    labels: Tensor,
    gradient: Tensor | None,
    losses: Tensor,
    arrived: Tensor,
    z_loss_coef: float,
) -> None:
    """Write the gradient [N, V], if there is one, of the product [N, V], and the losses [N].

    ``arrived`` [N] is int32, and zero.
    """
    rows, vocabulary = product.shape
    number, block, options = CUT.pieces(vocabulary)
    padded = power_of_two(number)
    partials = product.new_empty(rows, 2, padded)
    for first, last in stages(product, number, GRADIENT.value):
        _piece[(rows * number,)](
            product,
            labels,
            partials,
            arrived,
            losses,
            product if gradient is None else gradient,
            product.stride(0),
            0 if gradient is None else gradient.stride(0),
            vocabulary,
            number,
            *head.parts,
            z_loss_coef,
            TRAINED=gradient is not None,
            SQUARED=z_loss_coef != 0.0,
            FIRST=first,
            LAST=last,
            BLOCK=block,
            PIECES=padded,
            **options,
        )


def _by_parts(
    head: Head,
    rows: Tensor,
    labels: Tensor,
    product: Tensor,
    gradient: Tensor | None,
    losses: Tensor,
    arrived: Tensor,
    z_loss_coef: float,
) -> None:
    """The same for ``rows`` [N, H], whose product is computed in parts, one after the other in ``product``."""
    for some in parts(rows.shape[0]):
        of_part = mm(rows[some], head.weight.t(), product[: some.stop - some.start])
        of_logits = None if gradient is None else gradient[some]
        _losses(head, of_part, labels[some], of_logits, losses[some], arrived[some], z_loss_coef)


def _empty_output(rows: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    shapes = (rows.shape, weight.shape, weight.shape[:1])
    of_rows, of_weight, of_bias = (
        rows.new_empty(shape if wanted else (0,), dtype=dtype) for shape, wanted in zip(shapes, others[-1], strict=True)
    )
    return rows.new_empty((), dtype=dtype), of_rows, of_weight, of_bias


def _chunk_size(given: int | None, weight: Tensor, exponential: bool) -> int:
    return given or default_chunk(weight, 4 if exponential else 2)


def _scratch(*args: Any) -> int:
    rows, weight, labels, chunk_size, wanted = (args[index] for index in (0, 1, 3, 8, 9))
    exponential = suits(rows, weight)
    tokens = min(_chunk_size(chunk_size, weight, exponential), labels.numel())
    return buffer_bytes(weight, tokens, heads=0 if exponential else 1, trained=any(wanted))


@custom_op("triton_linear_cross_entropy", fake=_empty_output, scratch=_scratch)
def _sum(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    softcap: float | None,
    logit_scale: float,
    z_loss_coef: float,
    ignore_index: int,
    chunk_size: int | None,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum over the labels [T] that count, and its gradients for rows [T, H], weight and bias, where ``wanted``."""
    total, of_rows, of_weight, of_bias = _empty_output(rows, weight, wanted)
    head = Head(weight, bias, softcap, logit_scale)
    exponential = is_possible(rows, weight)
    if not exponential:
        head = head.ready()
    placed = place_scaled if exponential else place
    gradients = HeadGradients(head, of_rows, of_weight, of_bias, wanted, place=placed)
    tokens, vocabulary = labels.shape[0], weight.shape[0]
    chunk_size = _chunk_size(chunk_size, weight, exponential)
    size = min(chunk_size, tokens)
    product = None if exponential else buffer(rows, part_size(size), vocabulary, total.dtype)
    gradient = buffer(rows, size, vocabulary, head.weight.dtype) if any(wanted) else None
    losses, arrived = total.new_zeros(tokens), labels.new_zeros(tokens, dtype=torch.int32)
    # A custom operator hides nothing from autocast, which would round what is multiplied here to sixteen bits.
    with without_autocast(labels):
        for here, positions in busy_chunks(labels, ignore_index, chunk_size, gradients, losses, arrived):
            some_rows, targets, factors = rows[positions], labels[positions], None
            of_chunk = None if gradient is None else gradient[: len(positions)]
            if product is None:
                factors = write_exponentials(head, some_rows, targets, of_chunk, losses[here], z_loss_coef)
            else:
                _by_parts(head, some_rows, targets, product, of_chunk, losses[here], arrived[here], z_loss_coef)
            if of_chunk is not None:
                gradients.add(of_chunk, some_rows, positions, factors)
    gradients.finish()
    torch.sum(losses, 0, out=total)
    return total, of_rows, of_weight, of_bias


register_scaled_gradients(_sum, "cross_entropy_loss", scaled_gradient)
