"""When a kernel may use a module's weight without calling the module."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kernelkit.ops.norms import Norm


def obstacle_to_passing_by(module: nn.Module, name: str) -> str | None:
    """What hangs on ``module`` that only a call of it honours, in words that call it ``name``; None for nothing."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return f"{name} has hooks"
    if "forward" in module.__dict__:  # accelerate moves offloaded weights that way
        return f"{name}'s forward is replaced"
    if "parametrizations" in module._modules:
        return f"{name}'s weight is parametrised"
    if isinstance(module.weight, DTensor):
        return f"{name}'s weight is sharded"
    return None


def weight_and_eps(norm: Norm, op: str) -> tuple[Tensor, float]:
    """What the Triton kernel of ``op`` needs of a norm that it computes by itself.

    Raises:
        ValueError: where calling ``norm`` would do anything else.
    """
    # Of the class, because a wrapper such as PEFT's answers for what it wraps.
    if not hasattr(type(norm), "computes"):
        obstacle: str | None = f"a norm is a {type(norm).__name__}"
    else:
        obstacle = obstacle_to_passing_by(norm, "a norm") if isinstance(norm, nn.Module) else None
    if obstacle is not None:
        raise ValueError(
            f"{op}: triton computes the norm by itself, and {obstacle}. Name {op}: eager, or leave the norm plain."
        )
    return norm.weight, norm.variance_epsilon
