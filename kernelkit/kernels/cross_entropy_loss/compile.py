"""Language-model head and cross-entropy in plain PyTorch, fused by ``torch.compile``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kernelkit.kernels.compiled import compiled_specs
from kernelkit.kernels.cross_entropy_loss import eager


def cross_entropy_loss(
    hidden_states: Tensor, weight: Tensor, labels: Tensor, *, return_logits: bool = False, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    """As eager, but logits come only where they are asked for: they need not be written out."""
    loss, logits = eager.cross_entropy_loss(hidden_states, weight, labels, **settings)
    return loss, logits if return_logits else None


SPECS = compiled_specs("cross_entropy_loss", {"standard": cross_entropy_loss})
