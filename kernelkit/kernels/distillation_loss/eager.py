"""Both heads and their divergence in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kernelkit.kernels.dtypes import as_in_a_product, at_least_float32, without_autocast
from kernelkit.ops.distillation_loss import DistillationOutput, Divergence, check_arguments, per_item
from kernelkit.spec import KernelSpec


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
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    ignore_index: int = -100,
    num_items_in_batch: int | Tensor | None = None,
) -> DistillationOutput:
    """As the formulas in the contract, with the logits of all positions at once."""
    tensors = (student_hidden, student_weight, teacher_hidden, teacher_weight, labels)
    check_arguments(*tensors, divergence=divergence, beta=beta, temperature=temperature, alpha=alpha)
    labels = labels.to(student_hidden.device)
    counted = labels != ignore_index

    student = project(student_hidden, student_weight, student_bias, student_softcap, student_logit_scale)
    with torch.no_grad():
        teacher = project(teacher_hidden, teacher_weight, teacher_bias, teacher_softcap, teacher_logit_scale)
    log_p, log_q = (F.log_softmax(logits / temperature, dim=-1) for logits in (teacher, student))
    soft = _divergence(divergence, log_p, log_q, beta) * (temperature**2 if temperature_squared else 1)
    hard = F.cross_entropy(student.flatten(0, -2), labels.flatten(), ignore_index=ignore_index, reduction="none")
    hard = hard.view(labels.shape)
    # A share of nothing is nothing, also of an infinite cross-entropy.
    loss = alpha * hard + (1 - alpha) * soft if alpha else soft
    same = (student.argmax(-1) == teacher.argmax(-1)).to(student.dtype)

    figures = (loss, soft.detach(), hard.detach(), same)
    return DistillationOutput(
        *(per_item(torch.where(counted, each, 0).sum(), counted, num_items_in_batch) for each in figures)
    )


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, logit_scale: float) -> Tensor:
    """The logits [..., V] in at least float32, never rounded to the dtype of the operands."""
    hidden, weight = map(at_least_float32, as_in_a_product(hidden, weight))
    with without_autocast(hidden):
        logits = F.linear(hidden, weight, None if bias is None else bias.to(hidden.dtype)) * logit_scale
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def _divergence(name: Divergence, log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """[..., V] and [..., V] to [...]."""
    if name == "forward_kl" or (name == "jsd" and beta == 0):
        return _kl(log_p, log_q)
    if name == "reverse_kl" or beta == 1:
        return _kl(log_q, log_p)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(A||B) = sum of A (log A - log B)."""
    return (log_a.exp() * (log_a - log_b)).sum(-1)


SPECS = (
    KernelSpec(
        op="distillation_loss",
        variant="standard",
        name="eager",
        factory=f"{__name__}:distillation_loss",
        description="The reference: float32 logits of student and teacher at every position, all kept for backward.",
    ),
)
