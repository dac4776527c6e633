"""When the language-model head may be fused with its loss."""

from __future__ import annotations

from torch import nn

from kernelkit.kernels.passed_by import obstacle_to_passing_by


def obstacle_to_fusing(head: nn.Module) -> str | None:
    """Why the weight of ``head`` may not be used without calling ``head``, or None where it may.

    A loss kernel that projects by itself passes by everything that is attached to the head: a LoRA adapter, a hook, the
    gathering of a sharded weight, a quantised product.
    """
    if type(head) is not nn.Linear:
        return f"the head is a {type(head).__name__}, not a plain nn.Linear"
    return obstacle_to_passing_by(head, "the head")
