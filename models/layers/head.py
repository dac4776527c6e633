"""What stands between a decoder and its loss: which positions count, and whether the head may be fused with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kernelkit.containers.bindings import Binding
from kernelkit.kernels.passed_by import obstacle_to_passing_by

LOSS_ARGUMENTS = ("num_items_in_batch", "ignore_index", "z_loss_coef")
"""Arguments of a model that are for its loss, as in ``ForCausalLMLoss``, and the coefficient of the z-loss."""


def z_loss(config: Any, arguments: Mapping[str, Any]) -> dict[str, float]:
    """``z_loss_coef`` for the loss kernel, from ``arguments`` or else the config; nothing where it is zero or missing.

    A field beside ``router_aux_loss_coef``, since it says what the model is trained on, whatever kernel computes it.
    """
    coefficient = arguments.get("z_loss_coef", getattr(config, "z_loss_coef", None))
    return {"z_loss_coef": float(coefficient)} if coefficient else {}


def obstacle_to_fusing(head: nn.Module) -> str | None:
    """Why the weight of ``head`` may not be used without calling ``head``, or None where it may.

    A loss kernel that projects by itself passes by everything that is attached to the head: a LoRA adapter, a hook, the
    gathering of a sharded weight, a quantised product.
    """
    if type(head) is not nn.Linear:
        return f"the head is a {type(head).__name__}, not a plain nn.Linear"
    return obstacle_to_passing_by(head, "the head")


def allow_unfused(loss: Binding, obstacle: str) -> None:
    """Raise where the user named a loss kernel that would have to be left out. Eager's projection is the head's own."""
    if loss.impl != "eager" and loss.why != "default":
        raise ValueError(
            f"cross_entropy_loss: {loss.impl} ({loss.why}) projects to the vocabulary by itself, and {obstacle}. "
            "Name cross_entropy_loss: eager, or leave the head plain."
        )


def next_tokens(labels: Tensor | None, shift_labels: Tensor | None, ignore_index: int) -> Tensor | None:
    """What each position predicts: the labels moved one to the left, or those that are moved already."""
    if shift_labels is not None or labels is None:
        return shift_labels
    return F.pad(labels, (0, 1), value=ignore_index)[..., 1:]


def keep_positions(hidden_states: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Those of ``hidden_states`` [B, S, H] that logits are asked for: the last so many, or those given; 0 means all."""
    positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    return hidden_states[:, positions, :]
