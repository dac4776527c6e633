"""The distillation loss by chunks of tokens in Triton, with the gradients computed in the forward.

Products are cuBLAS's, of sixteen bits to float32. What is elementwise is one kernel, whose programs share the rows:
they read both models' logits once, exchange the statistics of both softmaxes, and for reverse KL and JSD the row's own
divergence, which their gradient contains, and write the gradient in the dtype of the head. So an entry of the
vocabulary costs 10 bytes of traffic in bfloat16, besides what the products move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelkit.kernels.chunked_head import (
    ChunkOptions,
    HeadGradients,
    buffer,
    buffer_bytes,
    busy_chunks,
    part_size,
    parts,
)
from kernelkit.kernels.custom_op import custom_op
from kernelkit.kernels.distillation_loss.chunked_shared_kernels import empty_output, loss_by_chunks
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
    log2,
    published,
    scaled_gradient,
    softmax_of_piece,
    softmax_of_pieces,
    stages,
    wait,
)
from kernelkit.kernels.triton_launch import power_of_two
from kernelkit.spec import Kernel


def distillation_loss(options: ChunkOptions) -> Kernel:
    """The kernel. It waits for the device once a call, to learn how many labels count."""
    return loss_by_chunks(lambda *arguments: _sums(*arguments), options.tokens)


CUT = Cut(block=4096, warps=8, registers=80)
"""The fastest of eleven on an H100, for KL and for the JSD."""

FORWARD_KL: tl.constexpr = tl.constexpr(0)
REVERSE_KL: tl.constexpr = tl.constexpr(1)
JSD: tl.constexpr = tl.constexpr(2)

STATISTICS: tl.constexpr = tl.constexpr(0)
DIVERGENCE: tl.constexpr = tl.constexpr(1)
GRADIENT: tl.constexpr = tl.constexpr(2)


@triton.jit
def _divergence(p, q, d, beta, KIND: tl.constexpr):
    """Terms of the divergence, and a such that its gradient is a - q, or else q (a - sum of q a); in units of ln 2.

    With d = log2(P/Q), log2(M/Q) is d + log2(1 + (1 - beta)(Q/P - 1)) or log2(1 + beta (P/Q - 1)), of which the one is
    taken whose quotient is below 1. It vanishes with d: taken from log(M) and log(Q), what is left of two equal models
    would be rounding errors.
    """
    if KIND == FORWARD_KL:
        terms = p * d
        slope = -p
    elif KIND == REVERSE_KL:
        slope = -d
        terms = q * slope
    else:
        rest = log2(1.0 + tl.where(d > 0, 1.0 - beta, beta) * (tl.exp2(-tl.abs(d)) - 1.0))
        slope = (beta - 1.0) * (tl.maximum(d, 0.0) + rest)
        terms = beta * p * (tl.minimum(d, 0.0) - rest) + q * slope
    return terms, slope


@triton.jit
def _piece(
    student,
    teacher,
    labels,
    partials,
    arrived,
    figures,
    gradient,
    student_stride,
    teacher_stride,
    gradient_stride,
    vocabulary,
    pieces,
    beta,
    temperature,
    soft_share,
    hard_share,
    student_bias,
    student_scale,
    student_cap,
    teacher_bias,
    teacher_scale,
    teacher_cap,
    KIND: tl.constexpr,
    WARM: tl.constexpr,
    MIXED: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECES: tl.constexpr,
):
    """A piece of a row, in the stages from FIRST to LAST: softmax statistics, divergence, gradient.

    WARM is a temperature other than 1, MIXED a share of the cross-entropy. ``partials`` [N, 6, PIECES] holds what is
    published: maxima and sums of the student, those of the teacher, the student's sums at temperature 1, divergences.
    """
    program = tl.program_id(0)
    row, piece = (program // pieces).to(tl.int64), program % pieces
    columns = piece * BLOCK + tl.arange(0, BLOCK)
    mask = columns < vocabulary
    student += row * student_stride
    teacher += row * teacher_stride
    partials += row * 6 * PIECES
    dtype = student.dtype.element_ty
    factor = (1.0 / temperature) * LOG2_E
    s = head_logits(student, columns, mask, student_bias, student_scale, student_cap)
    t = head_logits(teacher, columns, mask, teacher_bias, teacher_scale, teacher_cap)
    s, t = tl.where(mask, s, LOWEST), tl.where(mask, t.to(dtype), LOWEST)

    # Both models are reduced together, which halves the times that a program's warps wait for each other.
    model = tl.arange(0, 2)
    own_maxima, powers, sums = softmax_of_piece(tl.join(s, t), factor)

    if FIRST == STATISTICS:
        tl.store(partials + model * PIECES + piece, own_maxima)
        tl.store(partials + (2 + model) * PIECES + piece, sums)
        if WARM:
            _, _, hard_sum = softmax_of_piece(s, LOG2_E)
            tl.store(partials + 4 * PIECES + piece, hard_sum)
        if LAST > STATISTICS:
            arrive(arrived + row)
            wait(arrived + row, pieces)

    if LAST >= DIVERGENCE:
        index = tl.arange(0, PIECES)
        there = index < pieces
        of_models = partials + model[None, :] * PIECES + index[:, None]
        all_maxima = published(of_models, there[:, None], LOWEST)
        sums = published(of_models + 2 * PIECES, there[:, None], 0.0)
        maxima, logs = softmax_of_pieces(all_maxima, sums, factor)
        student_maximum, teacher_maximum = tl.split(maxima)
        student_log, teacher_log = tl.split(logs)
        hard_log = student_log
        if WARM:
            sums = published(partials + 4 * PIECES + index, there, 0.0)
            _, hard_log = softmax_of_pieces(published(partials + index, there, LOWEST), sums, LOG2_E)
        q, p = tl.split(powers * tl.exp2((own_maxima - maxima) * factor - logs)[None, :])
        d = (t - s) * factor + ((student_maximum - teacher_maximum) * factor + (student_log - teacher_log))
        terms, slope = _divergence(p, q, d, beta, KIND)
        label = tl.load(labels + row)

        if FIRST <= DIVERGENCE:
            figures += (row * pieces + piece) * 3
            if KIND == FORWARD_KL:
                divergence = tl.sum(terms, axis=0)
            else:
                divergence, own = tl.split(tl.sum(tl.join(terms, q * slope), axis=0))
                tl.store(partials + 5 * PIECES + piece, own)
                if FIRST == STATISTICS and LAST == GRADIENT:
                    arrive(arrived + row)
            tl.store(figures, divergence * LN_2)
            if tl.sum((own_maxima == maxima).to(tl.int32), axis=0) == 2:
                same = (s == student_maximum) & (t == teacher_maximum)
                tl.store(figures + 1, tl.sum(same.to(dtype), axis=0))
            if piece == 0:
                hard = cross_entropy(
                    student, label, vocabulary, student_bias, student_scale, student_cap, student_maximum, hard_log
                )
                tl.store(figures + 2, hard)

        if LAST == GRADIENT:
            if KIND == FORWARD_KL:
                of_logits = (q + slope) * soft_share
            else:
                if FIRST == STATISTICS:
                    wait(arrived + row, 2 * pieces)
                own = tl.sum(published(partials + 5 * PIECES + index, there, 0.0), axis=0)
                of_logits = q * ((slope - own) * (soft_share * LN_2))
            if MIXED:
                hard_q = q
                if WARM:
                    hard_q = tl.exp2((s - student_maximum) * LOG2_E - hard_log)
                of_logits += (hard_q - (columns == label).to(dtype)) * hard_share
            of_product = head_chain(of_logits, s, student_scale, student_cap)
            gradient += row * gradient_stride
            tl.store(gradient + columns, of_product.to(gradient.dtype.element_ty), mask=mask)


@dataclass(frozen=True, eq=False)
class _Loss:
    """The loss of some rows. ``shares`` are those of the divergence and of the cross-entropy."""

    student: Head
    teacher: Head
    beta: float
    temperature: float
    shares: list[float]

    @property
    def kind(self) -> int:
        """Which of the divergences the beta is."""
        return {0.0: FORWARD_KL, 1.0: REVERSE_KL}.get(self.beta, JSD).value  # type: ignore[no-any-return]  # Triton has no types

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        gradient: Tensor | None,
        figures: Tensor,
        arrived: Tensor,
    ) -> None:
        """Write the gradient [N, V], if there is one, of the products [N, V] of both models, and the figures.

        Those are divergence, agreement and cross-entropy of each piece of each row [N, pieces, 3]. ``arrived`` [N] is
        int32, and zero.
        """
        rows, vocabulary = student.shape
        number, block, options = CUT.pieces(vocabulary)
        padded = power_of_two(number)
        partials = student.new_empty(rows, 6, padded)
        for first, last in stages(student, number, (DIVERGENCE if gradient is None else GRADIENT).value):
            _piece[(rows * number,)](
                student,
                teacher,
                labels,
                partials,
                arrived,
                figures,
                student if gradient is None else gradient,
                student.stride(0),
                teacher.stride(0),
                0 if gradient is None else gradient.stride(0),
                vocabulary,
                number,
                self.beta,
                self.temperature,
                self.shares[0] / self.temperature,
                self.shares[1],
                *self.student.parts,
                *self.teacher.parts,
                KIND=self.kind,
                WARM=self.temperature != 1,
                MIXED=self.shares[1] != 0,
                FIRST=first,
                LAST=last,
                BLOCK=block,
                PIECES=padded,
                **options,
            )


def _scratch(*args: Any) -> int:
    weight, labels, chunk_size, wanted = (args[index] for index in (1, 6, 14, 15))
    return buffer_bytes(weight, min(chunk_size, labels.numel()), heads=2, trained=any(wanted))


@custom_op("triton_distillation_loss", fake=empty_output, scratch=_scratch)
def _sums(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    labels: Tensor,
    beta: float,
    temperature: float,
    shares: list[float],
    student_softcap: float | None,
    teacher_softcap: float | None,
    logit_scales: list[float],
    ignore_index: int,
    chunk_size: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sums over the labels [T] that count, and the gradients of the first; as that of the chunked kernel."""
    total, figures, of_hidden, of_weight, of_bias = empty_output(student_hidden, student_weight, wanted)
    student = Head(student_weight, student_bias, student_softcap, logit_scales[0]).ready()
    teacher = Head(teacher_weight, teacher_bias, teacher_softcap, logit_scales[1]).ready()
    loss = _Loss(student, teacher, beta, temperature, shares)
    gradients = HeadGradients(student, of_hidden, of_weight, of_bias, wanted)
    tokens, vocabulary = labels.shape[0], student_weight.shape[0]
    size = min(chunk_size, tokens)
    of_student = buffer(student_hidden, part_size(size), vocabulary, figures.dtype)
    of_teacher = buffer(
        student_hidden, part_size(size), vocabulary, torch.promote_types(teacher_weight.dtype, torch.float32)
    )
    gradient = buffer(student_hidden, size, vocabulary, student.weight.dtype) if any(wanted) else None
    of_pieces = figures.new_zeros(tokens, CUT.pieces(vocabulary)[0], 3)
    arrived = labels.new_zeros(tokens, dtype=torch.int32)
    # A custom operator hides nothing from autocast, which would round what is multiplied here to sixteen bits.
    with without_autocast(labels):
        for here, positions in busy_chunks(labels, ignore_index, chunk_size, gradients, of_pieces, arrived):
            rows, teachers_rows, targets = student_hidden[positions], teacher_hidden[positions], labels[positions]
            for some in parts(positions.shape[0]):
                size = some.stop - some.start
                loss(
                    mm(rows[some], student.weight.t(), of_student[:size]),
                    mm(teachers_rows[some], teacher.weight.t(), of_teacher[:size]),
                    targets[some],
                    None if gradient is None else gradient[some],
                    of_pieces[here][some],
                    arrived[here][some],
                )
            if gradient is not None:
                gradients.add(gradient[: positions.shape[0]], rows, positions)
    gradients.finish()
    soft, same, hard = of_pieces.sum(1).unbind(1)
    # The largest logits may be tied, in several pieces.
    torch.stack((soft.sum(), hard.sum(), same.clamp(max=1).sum()), out=figures)
    total.zero_()
    for share, figure in zip(shares, figures[:2], strict=True):
        total += share * figure if share else 0.0
    return total, figures, of_hidden, of_weight, of_bias


register_scaled_gradients(_sums, "distillation_loss", scaled_gradient)
