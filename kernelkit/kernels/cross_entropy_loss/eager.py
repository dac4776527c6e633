"""Language-model head and cross-entropy in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernelkit.kernels.dtypes import at_least_float32
from kernelkit.spec import KernelSpec


def cross_entropy_loss(
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
    """As an HF head followed by ``ForCausalLMLoss``. The logits are returned in any case: they are there."""
    logits = project(hidden_states, weight, bias, softcap=softcap, logit_scale=logit_scale)
    loss = cross_entropy(
        logits, labels, ignore_index=ignore_index, num_items_in_batch=num_items_in_batch, z_loss_coef=z_loss_coef
    )
    return loss, logits


def project(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None, *, softcap: float | None, logit_scale: float
) -> Tensor:
    """The logits [..., V], scaled as in ``CohereForCausalLM`` and capped as in ``Gemma2ForCausalLM``."""
    logits = F.linear(hidden_states, weight, bias)
    if logit_scale != 1.0:
        logits = logits * logit_scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return logits


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    num_items_in_batch: int | Tensor | None = None,
    z_loss_coef: float = 0.0,
) -> Tensor:
    """The loss of logits that are there already, for a head that must be called as the module it is.

    Args:
        logits: [..., V].
        labels: [...] int64, already shifted.
        ignore_index, num_items_in_batch, z_loss_coef: as in :class:`kernelkit.ops.cross_entropy_loss.CrossEntropyLoss`.
    """
    logits = at_least_float32(logits).reshape(-1, logits.shape[-1])
    labels = labels.reshape(-1).to(logits.device)
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(logits.device)
    if num_items_in_batch is None:
        loss = F.cross_entropy(logits, labels, ignore_index=ignore_index)
    else:
        loss = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum") / num_items_in_batch
    if z_loss_coef == 0.0:
        return loss
    ignored = labels == ignore_index
    squares = logits.logsumexp(-1).masked_fill(ignored, 0).square().sum()
    # Without any label the loss is nan already, and the gradients are to be zero.
    count = (~ignored).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return loss + z_loss_coef * squares / count


SPECS = (
    KernelSpec(
        op="cross_entropy_loss",
        variant="standard",
        name="eager",
        factory=f"{__name__}:cross_entropy_loss",
        description="The reference: the head, then ForCausalLMLoss.",
    ),
)
