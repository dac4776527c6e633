"""What the distillation losses by chunks have in common: the call, and what their operators return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernelkit.kernels.chunked_head import as_rows
from kernelkit.ops.distillation_loss import DistillationOutput, Divergence, check_arguments, per_item
from kernelkit.spec import Kernel


def loss_by_chunks(sums: Callable[..., tuple[Tensor, ...]], chunk_size: Callable[[Tensor], int]) -> Kernel:
    """The kernel.

    Args:
        sums: the operator; returns what ``empty_output`` does.
        chunk_size: how many tokens to take at a time, for the student's weight.
    """

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
        total, figures, *_ = sums(
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
            chunk_size(student_weight),
            wanted,
        )
        soft, hard, same = figures.unbind()
        counted = targets != ignore_index
        return DistillationOutput(
            *(per_item(each, counted, num_items_in_batch) for each in (total, soft * squared, hard, same))
        )

    return kernel


def empty_output(
    student_hidden: Tensor, student_weight: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss; divergence, cross-entropy and agreement [3]; gradients of hidden states, weight and bias.

    Each of at least float32. The last of ``others`` says which gradients are wanted; the rest are empty.
    """
    dtype = torch.promote_types(student_hidden.dtype, torch.float32)
    trained = (student_hidden.shape, student_weight.shape, student_weight.shape[:1])
    shapes = [shape if wanted else (0,) for shape, wanted in zip(trained, others[-1], strict=True)]
    total, figures, of_hidden, of_weight, of_bias = (
        student_hidden.new_empty(shape, dtype=dtype) for shape in ((), (3,), *shapes)
    )
    return total, figures, of_hidden, of_weight, of_bias
