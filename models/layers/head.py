"""When the language-model head may be fused with its loss."""

from __future__ import annotations

from torch import nn
from torch.distributed.tensor import DTensor


def obstacle_to_fusing(head: nn.Module) -> str | None:
    """Why the weight of ``head`` may not be used without calling ``head``, or None where it may.

    A loss kernel that projects by itself passes by everything that is attached to the head: a LoRA adapter, a hook, the
    gathering of a sharded weight, a quantised product.
    """
    if type(head) is not nn.Linear:
        return f"the head is a {type(head).__name__}, not a plain nn.Linear"
    if head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or head._backward_pre_hooks:
        return "the head has hooks"
    if "forward" in head.__dict__:  # accelerate moves offloaded weights that way
        return "the head's forward is replaced"
    if hasattr(head, "parametrizations"):
        return "the head's weight is parametrised"
    if isinstance(head.weight, DTensor):
        return "the head's weight is sharded"
    return None
