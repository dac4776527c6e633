"""The distillation loss by chunks of tokens, with the gradients computed in the forward.

Nothing is computed twice: a token costs 6 Hs + 2 Ht floating point operations for each entry of the vocabulary, the
gradient included. What is elementwise reads and writes the chunk's float32 tensors in place, about 25 times four bytes
an entry for a KL and 36 for the JSD. The gradients are kept from forward to backward in float32, and rounded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernelkit.kernels.chunked_head import counting_chunks
from kernelkit.kernels.custom_op import custom_op
from kernelkit.kernels.distillation_loss.chunked import ChunkedDistillationOptions
from kernelkit.kernels.distillation_loss.chunked_shared_kernels import empty_output, loss_by_chunks
from kernelkit.kernels.distillation_loss.divergence_kernels import divergence_
from kernelkit.kernels.dtypes import without_autocast
from kernelkit.kernels.head import Head
from kernelkit.kernels.matmul import add_mm_, mm
from kernelkit.kernels.scaled_gradient import register_scaled_gradients
from kernelkit.spec import Kernel


def distillation_loss(options: ChunkedDistillationOptions) -> Kernel:
    """The kernel. It waits for the device once a call, to learn how many labels count."""
    return loss_by_chunks(
        lambda *arguments: _sums(*arguments),
        lambda weight: options.chunk_size or default_chunk_size(weight.shape[0]),
    )


def default_chunk_size(vocabulary: int) -> int:
    """As many tokens as make four float32 tensors [tokens, vocabulary] one GiB, rounded up to a multiple of 128."""
    return 128 * math.ceil(2**30 / (16 * vocabulary) / 128)


@dataclass(frozen=True, eq=False)
class _Loss:
    """The loss of a chunk. ``shares`` are those of the divergence and of the cross-entropy."""

    student: Head
    teacher: Head
    beta: float
    temperature: float
    shares: list[float]

    def __call__(self, student_rows: Tensor, teacher_rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of divergence, cross-entropy and agreement [3]; gradient of the loss for rows @ weight.T [N, V]."""
        students_choice, log_q, cross_entropy, of_hard, capped = self._predict(student_rows, targets)
        teachers_choice, log_p = self._teach(teacher_rows)
        soft, gradient = divergence_(log_p, log_q, self.beta, self.shares[0] / self.temperature)
        if of_hard is not None:
            gradient.add_(of_hard, alpha=self.shares[1])
        same = (students_choice == teachers_choice).sum()
        return torch.stack((soft, cross_entropy, same.to(soft.dtype))), self.student.chain_(gradient, capped)

    def _predict(self, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """The student's side. The logits are given back only where the softcap's gradient needs them."""
        logits = self.student.logits(rows)
        log_q = logits.log_softmax(-1)
        cross_entropy = -log_q.gather(-1, targets.unsqueeze(-1)).sum()
        of_hard = None
        if self.shares[1]:
            of_hard = log_q.exp()
            of_hard[torch.arange(targets.shape[0], device=targets.device), targets] -= 1
        if self.temperature != 1:
            torch.log_softmax(logits / self.temperature, -1, out=log_q)
        return logits.argmax(-1), log_q, cross_entropy, of_hard, logits if self.student.softcap is not None else None

    def _teach(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.teacher.logits(rows)
        choice = logits.argmax(-1)
        if self.temperature != 1:
            logits.div_(self.temperature)
        return choice, logits.log_softmax(-1)


def _scratch(*args: Any) -> int:
    """Three tensors of a chunk's logits for a KL, four for the JSD; one more for a softcap, and one for labels."""
    weight, labels, beta, shares, softcap, chunk_size = (args[index] for index in (1, 6, 7, 9, 10, 14))
    tensors: int = 3 + (0 < beta < 1) + (softcap is not None) + (shares[1] != 0)
    itemsize: int = torch.promote_types(weight.dtype, torch.float32).itemsize
    tokens: int = min(chunk_size, labels.numel())
    return tensors * tokens * int(weight.shape[0]) * itemsize


@custom_op("chunked_distillation_loss", fake=empty_output, scratch=_scratch)
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
    """Sums over the labels [T] that count, and the gradients of the first.

    These are: the loss; divergence, cross-entropy and agreement [3]; and where ``wanted``, else empty, what the loss
    gives the student's hidden states [T, Hs], weight and bias.
    """
    outputs = empty_output(student_hidden, student_weight, wanted)
    total, figures, of_hidden, of_weight, of_bias = (output.zero_() for output in outputs)
    student = Head(student_weight, student_bias, student_softcap, logit_scales[0]).ready()
    teacher = Head(teacher_weight, teacher_bias, teacher_softcap, logit_scales[1]).ready()
    loss = _Loss(student, teacher, beta, temperature, shares)
    # A custom operator hides nothing from autocast, which would round what is multiplied here to sixteen bits.
    with without_autocast(labels):
        for positions in counting_chunks(labels, ignore_index, chunk_size):
            rows = student_hidden[positions]
            chunk, gradient = loss(rows, teacher_hidden[positions], labels[positions])
            figures += chunk
            if wanted[2]:
                of_bias += gradient.sum(0)
            gradient = gradient.to(student.weight.dtype)
            if wanted[0]:
                of_hidden[positions] = mm(gradient, student.weight)
            if wanted[1]:
                add_mm_(of_weight, gradient.t(), rows)
            # Else it would live on while the next chunk is projected.
            del gradient
    for share, figure in zip(shares, figures[:2], strict=True):
        total += share * figure if share else 0.0
    return total, figures, of_hidden, of_weight, of_bias


register_scaled_gradients(_sums, "distillation_loss")
