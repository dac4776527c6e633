"""The distillation loss by chunks of tokens, with the gradients computed in the forward.

Nothing is computed twice: a token costs 6 Hs + 2 Ht floating point operations for each entry of the vocabulary, the
gradient included. What is elementwise reads and writes the chunk's float32 tensors in place, about 25 times four bytes
an entry for a KL and 36 for the JSD. The gradients are kept from forward to backward in float32, and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernelkit.kernels.custom_op import custom_op
from kernelkit.kernels.distillation_loss.chunked import ChunkedDistillationOptions
from kernelkit.kernels.distillation_loss.divergence_kernels import divergence_
from kernelkit.kernels.dtypes import as_in_a_product
from kernelkit.kernels.head import Head
from kernelkit.kernels.matmul import add_mm_, mm
from kernelkit.kernels.scaled_gradient import refuse_create_graph, scaled_gradient
from kernelkit.ops.distillation_loss import DistillationOutput, Divergence, check_arguments, per_item
from kernelkit.spec import Kernel


def distillation_loss(options: ChunkedDistillationOptions) -> Kernel:
    """The kernel. It waits for the device once a call, to learn how many labels count."""

    def kernel(
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        labels: Tensor,
        *,
        divergence: Divergence = "forward_kl",
        beta: float = 0.5,
        temperature: float = 1.0,
        temperature_squared: bool = False,
        alpha: float = 0.0,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        student_softcap: float | None = None,
        teacher_softcap: float | None = None,
        student_logit_scale: float = 1.0,
        teacher_logit_scale: float = 1.0,
        ignore_index: int = -100,
        num_items_in_batch: int | Tensor | None = None,
    ) -> DistillationOutput:
        tensors = (student_hidden, student_weight, teacher_hidden, teacher_weight, labels)
        check_arguments(*tensors, divergence=divergence, beta=beta, temperature=temperature, alpha=alpha)
        targets = labels.reshape(-1).to(student_hidden.device)
        student = (*as_rows(student_hidden, student_weight), student_bias)
        teacher = (*as_rows(teacher_hidden, teacher_weight), teacher_bias)
        wanted = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in student]
        squared = float(temperature**2) if temperature_squared else 1.0
        total, figures, *_ = _sums(
            *student,
            *teacher,
            targets,
            {"forward_kl": 0.0, "reverse_kl": 1.0}.get(divergence, float(beta)),
            float(temperature),
            [(1.0 - alpha) * squared, float(alpha)],
            student_softcap,
            teacher_softcap,
            [float(student_logit_scale), float(teacher_logit_scale)],
            ignore_index,
            options.chunk_size or default_chunk_size(student_weight.shape[0]),
            wanted,
        )
        soft, hard, same = figures.unbind()
        counted = targets != ignore_index
        return DistillationOutput(
            *(per_item(each, counted, num_items_in_batch) for each in (total, soft * squared, hard, same))
        )

    return kernel


def default_chunk_size(vocabulary: int) -> int:
    """As many tokens as make four float32 tensors [tokens, vocabulary] one GiB, rounded up to a multiple of 128."""
    return 128 * math.ceil(2**30 / (16 * vocabulary) / 128)


def as_rows(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """``hidden`` [..., H] as [T, H], both in the dtype of autocast where it is on."""
    hidden, weight = as_in_a_product(hidden, weight)
    return hidden.reshape(-1, hidden.shape[-1]), weight


def counting_chunks(labels: Tensor, ignore_index: int, chunk_size: int) -> Iterator[Tensor]:
    """Positions of the labels [T] that count, in chunks of one size up to rounding; this waits for the device."""
    positions = (labels != ignore_index).nonzero().flatten()
    chunks = max(1, math.ceil(positions.shape[0] / chunk_size))
    yield from positions.tensor_split(chunks)


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


def _empty_output(student_hidden: Tensor, student_weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(student_hidden.dtype, torch.float32)
    trained = (student_hidden.shape, student_weight.shape, student_weight.shape[:1])
    shapes = [shape if wanted else (0,) for shape, wanted in zip(trained, others[-1], strict=True)]
    return tuple(student_hidden.new_empty(shape, dtype=dtype) for shape in ((), (3,), *shapes))


@custom_op("chunked_distillation_loss", fake=_empty_output)
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
    outputs = _empty_output(student_hidden, student_weight, wanted)
    total, figures, of_hidden, of_weight, of_bias = (output.zero_() for output in outputs)
    student = Head(student_weight, student_bias, student_softcap, logit_scales[0]).ready()
    teacher = Head(teacher_weight, teacher_bias, teacher_softcap, logit_scales[1]).ready()
    loss = _Loss(student, teacher, beta, temperature, shares)
    # A custom operator hides nothing from autocast, which would round what is multiplied here to sixteen bits.
    with torch.autocast(labels.device.type, enabled=False):
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


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[2:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs[:3]]
    # Else autograd would make zeros as large as the head for the gradient of its gradient.
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, factor: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if factor is None:
        return (None,) * len(ctx.needs_input_grad)
    refuse_create_graph("distillation_loss")
    saved = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad, strict=False)
    of_inputs = [scaled_gradient(gradient, factor, dtype) if needed else None for gradient, dtype, needed in saved]
    return *of_inputs, *[None] * (len(ctx.needs_input_grad) - 3)


_sums.register_autograd(_differentiate, setup_context=_save)
