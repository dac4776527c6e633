"""What is trained and how, and the gradient of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelkit.distill.config import OptimConfig
from kernelkit.distill.data.batch import Batch
from kernelkit.distill.optimizer import MasterAdamW
from kernelkit.distill.teacher import Teacher
from kernelkit.models.layers.causal_lm import CausalLM
from kernelkit.models.layers.teaching import Distillation

SUMMED = ("loss", "divergence", "cross_entropy", "agreement")
"""The figures of a step, each a part of which comes from every micro-batch and rank."""


@dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
        name: ``teacher``, ``student`` or ``control``.
        model: what is trained.
        teacher: what teaches it; None to learn from the labels alone.
        judge: the teacher that evaluations compare with; None for none.
        distillation: how the teacher is followed.
        optim, lr, steps: of AdamW.
        seed: of dropout.
    """

    name: str
    model: CausalLM
    teacher: Teacher | None
    judge: Teacher | None
    distillation: Distillation
    optim: OptimConfig
    lr: float
    steps: int
    seed: int

    def loss(self, batch: Batch, num_targets: int, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """This batch's part of the loss, and of the :data:`SUMMED` figures [4], detached.

        Args:
            batch: some rows of a step.
            num_targets: labels that count in the whole step.
            share: of a router's balancing loss, which is a mean: one over the number of batches in the step.
        """
        divisor = {"num_items_in_batch": num_targets, "use_cache": False}
        if self.teacher is None:
            output = self.model(**batch.inputs(), **divisor)
        else:
            taught = {"teaching": self.teacher(batch), "distillation": self.distillation}
            output = self.model(**batch.inputs(), **taught, **divisor)
        loss: Tensor = output.loss
        if getattr(output, "aux_loss", None) is not None:
            loss = loss - (1 - share) * self.model.config.router_aux_loss_coef * output.aux_loss
        zero = torch.zeros_like(loss)
        parts = (zero, loss, zero) if self.teacher is None else output.distillation[1:]
        return loss, torch.stack([loss, *parts]).detach()


def compute_gradient(
    stage: Stage,
    optimizer: MasterAdamW,
    batches: Sequence[Batch],
    num_targets: int,
    device: torch.device,
    world_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """Give ``optimizer`` the gradient of all ``batches`` of this rank, clipped.

    Args:
        stage: what is trained.
        optimizer: of its model.
        batches: the micro-batches.
        num_targets: labels that count in the whole step, over all ranks.
        device: of the model.
        world_size: number of ranks.

    Returns:
        This rank's part of the :data:`SUMMED` figures [4], and the norm of the whole gradient, on the device.
    """
    sums = torch.zeros(len(SUMMED), dtype=torch.float64, device=device)
    for batch in batches:
        loss, figures = stage.loss(batch.to(device, non_blocking=True), num_targets, 1 / (len(batches) * world_size))
        # FSDP averages the gradients of the ranks, and this loss is a part of a sum over them.
        (loss * world_size).backward()  # type: ignore[no-untyped-call]  # untyped in torch
        optimizer.accumulate()
        sums += figures
    return sums, optimizer.clip()
