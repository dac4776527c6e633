"""The distillation loss by chunks of tokens in Triton, with the gradients computed in the forward.

Products are cuBLAS's, of sixteen bits to float32. What is elementwise is one program a row of both models' logits: a
first pass takes the statistics of both softmaxes, and a last one computes the divergence and writes the gradient, in the
dtype of the head. Reverse KL and JSD, whose gradient contains the row's own divergence, take a pass between. So an entry
costs 18 bytes of traffic for forward KL and 26 for the others, in bfloat16, besides what the products move.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelkit.kernels.chunked_head import ChunkOptions, HeadGradients, buffer, counting_chunks, parts
from kernelkit.kernels.custom_op import custom_op
from kernelkit.kernels.distillation_loss.chunked_shared_kernels import empty_output, loss_by_chunks
from kernelkit.kernels.head import Head
from kernelkit.kernels.matmul import mm
from kernelkit.kernels.scaled_gradient import register_scaled_gradients
from kernelkit.kernels.triton_head import LN_2, LOG2_E, LOWEST, head_chain, head_logits, log_sum, online
from kernelkit.spec import Kernel

BLOCK, WARPS = 4096, 16


def distillation_loss(options: ChunkOptions) -> Kernel:
    """The kernel. It waits for the device once a call, to learn how many labels count."""
    return loss_by_chunks(lambda *arguments: _sums(*arguments), options.tokens)


FORWARD_KL: tl.constexpr = tl.constexpr(0)
REVERSE_KL: tl.constexpr = tl.constexpr(1)
JSD: tl.constexpr = tl.constexpr(2)


@triton.jit
def _divergence(log_p, log_q, beta, KIND: tl.constexpr):
    """Terms of the divergence, and a, k and q such that its gradient is a - q (sum of k), in units of ln 2 but for KL.

    With d = log(P/Q), log(M/Q) is d + log(1 + (1 - beta)(Q/P - 1)) or log(1 + beta (P/Q - 1)), of which the one is
    taken whose quotient is below 1. It vanishes with d: taken from log(M) and log(Q), what is left of two equal models
    would be rounding errors.
    """
    if KIND == FORWARD_KL:
        p = tl.exp2(log_p)
        q = tl.exp2(log_q)
        terms = p * (log_p - log_q)
        slope = q - p
    elif KIND == REVERSE_KL:
        q = tl.exp2(log_q)
        terms = q * (log_q - log_p)
        slope = terms
    else:
        d = log_p - log_q
        quotient = tl.exp2(-tl.abs(d))
        larger = tl.exp2(tl.maximum(log_p, log_q))
        smaller = larger * quotient
        p = tl.where(d > 0, larger, smaller)
        q = tl.where(d > 0, smaller, larger)
        rest = tl.log2(1.0 + tl.where(d > 0, 1.0 - beta, beta) * (quotient - 1.0))
        slope = (beta - 1.0) * q * (tl.maximum(d, 0.0) + rest)
        terms = beta * p * (tl.minimum(d, 0.0) - rest) + slope
    return terms, slope, q


@triton.jit
def _row(
    student,
    teacher,
    student_bias,
    teacher_bias,
    labels,
    figures,
    gradient,
    student_stride,
    teacher_stride,
    gradient_stride,
    vocabulary,
    beta,
    temperature,
    soft_share,
    hard_share,
    student_scale,
    teacher_scale,
    student_cap,
    teacher_cap,
    KIND: tl.constexpr,
    WARM: tl.constexpr,
    MIXED: tl.constexpr,
    TRAINED: tl.constexpr,
    STUDENT_BIASED: tl.constexpr,
    TEACHER_BIASED: tl.constexpr,
    STUDENT_CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Divergence, cross-entropy and agreement of a row, and the gradient of its loss, if TRAINED.

    WARM is a temperature other than 1, MIXED a share of the cross-entropy. Every other pass goes backwards, so that it
    finds in the cache what the last one has left there.
    """
    row = tl.program_id(0).to(tl.int64)
    student += row * student_stride
    teacher += row * teacher_stride
    gradient += row * gradient_stride
    dtype = student.dtype.element_ty
    lanes = tl.arange(0, BLOCK)
    blocks = tl.cdiv(vocabulary, BLOCK)
    factor = (1.0 / temperature) * LOG2_E

    student_maxima = tl.full([BLOCK], LOWEST, dtype)
    teacher_maxima = tl.full([BLOCK], LOWEST, dtype)
    student_sums = tl.zeros([BLOCK], dtype)
    teacher_sums = tl.zeros([BLOCK], dtype)
    hard_sums = tl.zeros([BLOCK], dtype)
    for block in range(0, blocks):
        columns = block * BLOCK + lanes
        mask = columns < vocabulary
        s = head_logits(student, student_bias, columns, mask, student_scale, student_cap, STUDENT_BIASED, STUDENT_CAPPED)
        t = head_logits(teacher, teacher_bias, columns, mask, teacher_scale, teacher_cap, TEACHER_BIASED, TEACHER_CAPPED)
        s = tl.where(mask, s, float("-inf"))
        t = tl.where(mask, t.to(dtype), float("-inf"))
        if WARM:
            _, hard_sums = online(student_maxima, hard_sums, s, LOG2_E)
        student_maxima, student_sums = online(student_maxima, student_sums, s, factor)
        teacher_maxima, teacher_sums = online(teacher_maxima, teacher_sums, t, factor)
    student_maximum = tl.max(student_maxima, axis=0)
    teacher_maximum = tl.max(teacher_maxima, axis=0)
    student_log_sum = log_sum(student_maxima, student_sums, student_maximum, factor)
    teacher_log_sum = log_sum(teacher_maxima, teacher_sums, teacher_maximum, factor)
    hard_log_sum = student_log_sum
    if WARM:
        hard_log_sum = log_sum(student_maxima, hard_sums, student_maximum, LOG2_E)

    total = tl.zeros([BLOCK], dtype)
    same = tl.zeros([BLOCK], tl.int32)
    kept = tl.zeros([BLOCK], dtype)
    if KIND != FORWARD_KL or not TRAINED:
        for block in range(0, blocks):
            columns = (blocks - 1 - block) * BLOCK + lanes
            mask = columns < vocabulary
            s = head_logits(
                student, student_bias, columns, mask, student_scale, student_cap, STUDENT_BIASED, STUDENT_CAPPED
            )
            t = head_logits(
                teacher, teacher_bias, columns, mask, teacher_scale, teacher_cap, TEACHER_BIASED, TEACHER_CAPPED
            ).to(dtype)
            log_q = (s - student_maximum) * factor - student_log_sum
            log_p = (t - teacher_maximum) * factor - teacher_log_sum
            terms, slope, q = _divergence(log_p, log_q, beta, KIND)
            total += tl.where(mask, terms, 0.0)
            kept += tl.where(mask, slope, 0.0)
            same |= (mask & (s == student_maximum) & (t == teacher_maximum)).to(tl.int32)
    own = tl.sum(kept, axis=0)

    label = tl.load(labels + row)
    inside = (label >= 0) & (label < vocabulary)
    if TRAINED:
        for block in range(0, blocks):
            if KIND == FORWARD_KL:
                columns = (blocks - 1 - block) * BLOCK + lanes
            else:
                columns = block * BLOCK + lanes
            mask = columns < vocabulary
            s = head_logits(
                student, student_bias, columns, mask, student_scale, student_cap, STUDENT_BIASED, STUDENT_CAPPED
            )
            t = head_logits(
                teacher, teacher_bias, columns, mask, teacher_scale, teacher_cap, TEACHER_BIASED, TEACHER_CAPPED
            ).to(dtype)
            log_q = (s - student_maximum) * factor - student_log_sum
            log_p = (t - teacher_maximum) * factor - teacher_log_sum
            terms, slope, q = _divergence(log_p, log_q, beta, KIND)
            if KIND == FORWARD_KL:
                total += tl.where(mask, terms, 0.0)
                same |= (mask & (s == student_maximum) & (t == teacher_maximum)).to(tl.int32)
                of_logits = slope * soft_share
            else:
                of_logits = (slope - q * own) * (soft_share * LN_2)
            if MIXED:
                hard = q
                if WARM:
                    hard = tl.exp2((s - student_maximum) * LOG2_E - hard_log_sum)
                of_logits += (hard - (columns == label).to(dtype)) * hard_share
            of_product = head_chain(of_logits, s, student_scale, student_cap, STUDENT_CAPPED)
            tl.store(gradient + columns, of_product.to(gradient.dtype.element_ty), mask=mask)

    of_label = head_logits(
        student, student_bias, label, inside, student_scale, student_cap, STUDENT_BIASED, STUDENT_CAPPED
    )
    # A label that is no token makes the loss nan, as reading past the row would not.
    of_label = tl.where(inside, of_label, float("nan"))
    tl.store(figures + 3 * row, tl.sum(total, axis=0) * LN_2)
    tl.store(figures + 3 * row + 1, student_maximum - of_label + hard_log_sum * LN_2)
    tl.store(figures + 3 * row + 2, tl.max(same, axis=0).to(dtype))


@dataclass(frozen=True, eq=False)
class _Loss:
    """The loss of some rows. ``shares`` are those of the divergence and of the cross-entropy."""

    student: Head
    teacher: Head
    beta: float
    temperature: float
    shares: list[float]

    def __call__(
        self, student: Tensor, teacher: Tensor, labels: Tensor, figures: Tensor, gradient: Tensor | None
    ) -> None:
        """Write figures [N, 3], and the gradient [N, V] if there is one, of the products [N, V] of both models."""
        block = min(BLOCK, triton.next_power_of_2(student.shape[1]))
        _row[(student.shape[0],)](
            student,
            teacher,
            self.student.bias,
            self.teacher.bias,
            labels,
            figures,
            student if gradient is None else gradient,
            student.stride(0),
            teacher.stride(0),
            0 if gradient is None else gradient.stride(0),
            student.shape[1],
            self.beta,
            self.temperature,
            self.shares[0] / self.temperature,
            self.shares[1],
            self.student.logit_scale,
            self.teacher.logit_scale,
            self.student.softcap or 1.0,
            self.teacher.softcap or 1.0,
            KIND={0.0: FORWARD_KL, 1.0: REVERSE_KL}.get(self.beta, JSD).value,
            WARM=self.temperature != 1,
            MIXED=self.shares[1] != 0,
            TRAINED=gradient is not None,
            STUDENT_BIASED=self.student.bias is not None,
            TEACHER_BIASED=self.teacher.bias is not None,
            STUDENT_CAPPED=self.student.softcap is not None,
            TEACHER_CAPPED=self.teacher.softcap is not None,
            BLOCK=block,
            num_warps=min(WARPS, max(1, block // 256)),
        )


@custom_op("triton_distillation_loss", fake=empty_output)
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
    chunks = list(counting_chunks(labels, ignore_index, chunk_size))
    size, vocabulary = chunks[0].shape[0], student_weight.shape[0]
    part = next(iter(parts(size)), slice(0, 0)).stop
    of_student = buffer(student_hidden, part, vocabulary, figures.dtype)
    of_teacher = buffer(student_hidden, part, vocabulary, torch.promote_types(teacher_weight.dtype, torch.float32))
    gradient = buffer(student_hidden, size, vocabulary, student.weight.dtype) if any(wanted) else None
    of_rows = figures.new_empty(size, 3)
    figures.zero_()
    # A custom operator hides nothing from autocast, which would round what is multiplied here to sixteen bits.
    with torch.autocast(labels.device.type, enabled=False):
        for positions in chunks:
            rows, teachers_rows, targets = student_hidden[positions], teacher_hidden[positions], labels[positions]
            for some in parts(positions.shape[0]):
                loss(
                    mm(rows[some], student.weight.t(), of_student[: some.stop - some.start]),
                    mm(teachers_rows[some], teacher.weight.t(), of_teacher[: some.stop - some.start]),
                    targets[some],
                    of_rows[some],
                    None if gradient is None else gradient[some],
                )
            figures += of_rows[: positions.shape[0]].sum(0)
            if gradient is not None:
                gradients.add(gradient[: positions.shape[0]], rows, positions)
    gradients.finish()
    total.zero_()
    for share, figure in zip(shares, figures[:2], strict=True):
        total += share * figure if share else 0.0
    return total, figures, of_hidden, of_weight, of_bias


register_scaled_gradients(_sums, "distillation_loss")
