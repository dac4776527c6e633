"""Liger's fused experts as a pure kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from liger_kernel.ops.fused_moe import LigerFusedMoEFunction, compute_routing_metadata
from torch import Tensor

from kernelkit.kernels.custom_op import custom_op
from kernelkit.kernels.dtypes import as_in_a_product
from kernelkit.kernels.moe_experts.eager import expert_mlp


def moe_experts(
    hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """Liger's experts. It waits for the device once, to learn how many blocks of rows there are."""
    states, gate_up_proj, down_proj = as_in_a_product(hidden_states, gate_up_proj, down_proj)
    if hidden_states.shape[0] == 0:
        # Liger launches no empty grid; this is nothing too, and gives every gradient its zeros.
        return (expert_mlp(states, gate_up_proj[0], down_proj[0]) * top_k_weights[:, :1]).to(hidden_states.dtype)
    # Liger counts in memory that is not its own at an index of E. Another of the token's experts with no weight adds
    # nothing either; nor does any to a token without one, if that is zero: no weight times infinity would be no number.
    present = top_k_index < gate_up_proj.shape[0]
    other = torch.where(present, top_k_index, 0).amax(1, keepdim=True)
    index, weights = torch.where(present, top_k_index, other), torch.where(present, top_k_weights, 0)
    states = torch.where(present.any(1, keepdim=True), states, 0)
    output, _ = _experts(states, gate_up_proj, down_proj, index.int(), weights)
    return output.to(hidden_states.dtype)  # type: ignore[no-any-return]  # an operator has no types


class _Context(SimpleNamespace):
    """Stands in for autograd's context, so that Liger's function can be called for what it would save."""

    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *_: Tensor) -> None:
        pass

    def set_materialize_grads(self, _: bool) -> None:
        pass


def _empty_output(
    states: Tensor, gate_up_proj: Tensor, down_proj: Tensor, index: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    return states.new_empty(states.shape), states.new_empty(index.numel(), gate_up_proj.shape[1])


@custom_op("liger_moe_experts", fake=_empty_output)
def _experts(
    states: Tensor, gate_up_proj: Tensor, down_proj: Tensor, index: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The output [T, H], and gate and up [T * K, 2I] of each choice, for the backward."""
    context = _Context()
    output = LigerFusedMoEFunction.forward(context, states, gate_up_proj, down_proj, index, weights)
    return output, context.saved_tensors[3]


def _empty_gradients(
    gradient: Tensor,
    states: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    index: Tensor,
    weights: Tensor,
    gate_up: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_states, of_gate_up, of_down = (tensor.new_empty(tensor.shape) for tensor in (states, gate_up_proj, down_proj))
    return of_states, of_gate_up, of_down, weights.new_empty(weights.shape)


@custom_op("liger_moe_experts_backward", fake=_empty_gradients)
def _gradients(
    gradient: Tensor,
    states: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    index: Tensor,
    weights: Tensor,
    gate_up: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # The routing is computed again: it is cheap, and its number of blocks would be a shape that depends on the data.
    _, *routing = compute_routing_metadata(index.contiguous(), gate_up_proj.shape[0])
    starts, tokens, scatter, reverse, block_rows, block_experts = routing
    context = _Context(
        T=index.shape[0],
        K=index.shape[1],
        E=gate_up_proj.shape[0],
        H=states.shape[1],
        intermediate_dim=down_proj.shape[2],
        TK=index.numel(),
        num_m_tiles=block_rows.shape[0],
    )
    inputs = [tensor.contiguous() for tensor in (states, gate_up_proj, down_proj)]
    context.save_for_backward(
        *inputs, gate_up, weights.reshape(-1), starts, tokens, scatter, reverse, block_rows, block_experts
    )
    of_states, of_gate_up, of_down, _, of_weights = LigerFusedMoEFunction.backward(context, gradient)
    return of_states, of_gate_up, of_down, of_weights.to(weights.dtype)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    of_states, of_gate_up, of_down, of_weights = _gradients(gradient, *ctx.saved_tensors)
    return of_states, of_gate_up, of_down, None, of_weights


_experts.register_autograd(_differentiate, setup_context=_save)
