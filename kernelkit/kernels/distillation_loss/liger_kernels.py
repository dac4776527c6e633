"""Liger's fused linear JSD as a pure kernel, for the part of the contract that it has."""

from __future__ import annotations

from typing import Any

import torch
from liger_kernel.ops.fused_linear_jsd import fused_linear_jsd_forward
from torch import Tensor
from torch.nn import functional as F

from kernelkit.kernels.chunked_head import as_rows, counting_chunks
from kernelkit.kernels.custom_op import custom_op
from kernelkit.kernels.distillation_loss.chunked_kernels import default_chunk_size
from kernelkit.kernels.dtypes import without_autocast
from kernelkit.kernels.head import Head
from kernelkit.kernels.scaled_gradient import refuse_create_graph, scaled_gradient
from kernelkit.ops.distillation_loss import DistillationOutput, Divergence, check_arguments, per_item


def distillation_loss(
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
    ignore_index: int = -100,
    num_items_in_batch: int | Tensor | None = None,
    **others: Any,
) -> DistillationOutput:
    """The kernel.

    Raises:
        ValueError: besides what the contract says, for an alpha, a bias, a softcap and a logit scale.
    """
    tensors = (student_hidden, student_weight, teacher_hidden, teacher_weight, labels)
    check_arguments(*tensors, divergence=divergence, beta=beta, temperature=temperature, alpha=alpha)
    _refuse({"alpha": alpha, **others})
    targets = labels.reshape(-1).to(student_hidden.device)
    student = as_rows(student_hidden, student_weight)
    wanted = [torch.is_grad_enabled() and tensor.requires_grad for tensor in student]
    total, figures, *_ = _sums(
        *student,
        *as_rows(teacher_hidden, teacher_weight),
        targets,
        {"forward_kl": 0.0, "reverse_kl": 1.0}.get(divergence, float(beta)),
        float(temperature),
        ignore_index,
        wanted,
    )
    if temperature_squared:
        total = total * temperature**2
    sums = (total, total.detach(), *figures.unbind())
    return DistillationOutput(*(per_item(each, targets != ignore_index, num_items_in_batch) for each in sums))


_NEUTRAL = {
    "alpha": 0.0,
    "student_bias": None,
    "teacher_bias": None,
    "student_softcap": None,
    "teacher_softcap": None,
    "student_logit_scale": 1.0,
    "teacher_logit_scale": 1.0,
}


def _refuse(asked: dict[str, Any]) -> None:
    if unknown := asked.keys() - _NEUTRAL.keys():
        raise TypeError(f"distillation_loss() got an unexpected keyword argument {min(unknown)!r}")
    for name, value in asked.items():
        if isinstance(value, Tensor) or value != _NEUTRAL[name]:
            raise ValueError(
                f"distillation_loss: liger has no {name}. Use distillation_loss: chunked, or eager, which do."
            )


def _empty_output(
    student_hidden: Tensor, student_weight: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    hidden_wanted, weight_wanted = others[-1]
    total, count = (student_hidden.new_empty((), dtype=torch.float32) for _ in range(2))
    figures = student_hidden.new_empty(2, dtype=torch.float32)
    of_hidden = student_hidden.new_empty(student_hidden.shape if hidden_wanted else (0,))
    of_weight = student_weight.new_empty(student_weight.shape if weight_wanted else (0,))
    return total, figures, count, of_hidden, of_weight


@custom_op("liger_distillation_loss", fake=_empty_output)
def _sums(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    labels: Tensor,
    beta: float,
    temperature: float,
    ignore_index: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Over the labels [T] that count: what the backward needs to know of their sum.

    That is: the sum of the divergence; those of cross-entropy and agreement [2]; the number of these labels; and the
    gradients of the divergence's mean for hidden states and weight, empty where not ``wanted``.
    """
    if labels.shape[0] == 0:
        total, figures, count, of_hidden, of_weight = (
            output.zero_() for output in _empty_output(student_hidden, student_weight, wanted)
        )
        return total, figures, count, of_hidden, of_weight
    # A custom operator hides nothing from autocast, under which Liger would round the logits.
    with without_autocast(labels):
        figures = _observed(student_hidden, student_weight, teacher_hidden, teacher_weight, labels, ignore_index)
        mean, of_hidden, of_weight = fused_linear_jsd_forward(
            student_hidden,
            # Liger reads off the weight whether to compute its gradient.
            student_weight.detach().requires_grad_(wanted[1]),
            teacher_hidden,
            teacher_weight,
            labels.contiguous(),
            beta,
            ignore_index,
            has_label=True,
            temperature=temperature,
            # Named, or Liger's dispatcher would take others where the CUTLASS DSL is installed.
            jsd_impl="nvidia-triton",
            accum_dtype=torch.float32,
        )
    count = (labels != ignore_index).sum().to(mean.dtype)
    nothing = student_hidden.new_empty(0)
    return (
        mean * count,
        figures,
        count,
        of_hidden if wanted[0] else nothing,
        of_weight if wanted[1] else nothing.clone(),
    )


def _observed(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    labels: Tensor,
    ignore_index: int,
) -> Tensor:
    """Sums of cross-entropy and agreement [2], which Liger's kernel does not give."""
    student, teacher = (Head(weight, None, None, 1.0).ready() for weight in (student_weight, teacher_weight))
    figures = student_hidden.new_zeros(2, dtype=torch.float32)
    for positions in counting_chunks(labels, ignore_index, default_chunk_size(student_weight.shape[0])):
        logits = student.logits(student_hidden[positions])
        same = logits.argmax(-1) == teacher.logits(teacher_hidden[positions]).argmax(-1)
        figures += torch.stack((F.cross_entropy(logits, labels[positions], reduction="sum"), same.sum()))
    return figures


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[2:])
    ctx.mark_non_differentiable(*output[1:])
    # Else autograd would make zeros as large as the head for the gradient of its gradient.
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, factor: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if factor is None:
        return (None,) * len(ctx.needs_input_grad)
    refuse_create_graph("distillation_loss")
    count, *gradients = ctx.saved_tensors
    # Liger would multiply in place, which a second backward would find multiplied already.
    of_inputs = [
        scaled_gradient(gradient, factor * count, gradient.dtype) if needed else None
        for gradient, needed in zip(gradients, ctx.needs_input_grad, strict=False)
    ]
    return *of_inputs, *[None] * (len(ctx.needs_input_grad) - 2)


_sums.register_autograd(_differentiate, setup_context=_save)
