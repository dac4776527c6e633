"""What Liger's rotary embeddings for different devices have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kernelkit.kernels.lean_op import differentiable_op
from kernelkit.spec import Kernel


def rotation(name: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> Kernel:
    """The kernel made of one pair of launchers.

    Args:
        name: of the operator that is registered.
        forward: takes query and key [B, H, S, D], which it may overwrite, in the memory order of [B, S, H, D], with
            cos and sin; returns at least the rotated query and key, in the same order.
        backward: the same with the opposite angle.
    """

    def empty_output(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
        return _empty(query), _empty(key)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, _, cos, sin, ctx.back = inputs
        ctx.save_for_backward(cos, sin)

    def differentiate(ctx: Any, of_query: Tensor, of_key: Tensor) -> tuple[Tensor | None, ...]:
        # The gradient of a rotation is the rotation back.
        return *rotate(of_query, of_key, *ctx.saved_tensors, not ctx.back), None, None, None

    @differentiable_op(name, fake=empty_output, save=save, differentiate=differentiate)
    def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
        own_query, own_key = _empty(query).copy_(query), _empty(key).copy_(key)
        if query.numel() == 0:
            return own_query, own_key
        launch = backward if back else forward
        rotated_query, rotated_key, *_ = launch(own_query, own_key, cos.contiguous(), sin.contiguous())
        return rotated_query, rotated_key

    def rotary_pos_emb(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        rotated: tuple[Tensor, Tensor] = rotate(query, key, cos, sin, False)
        return rotated

    return rotary_pos_emb


def _empty(states: Tensor) -> Tensor:
    batch, heads, length, dim = states.shape
    return states.new_empty(batch, length, heads, dim).transpose(1, 2)
