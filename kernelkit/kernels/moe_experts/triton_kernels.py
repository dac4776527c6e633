"""The experts in Triton: grouped products, and few passes between them.

Tokens are spread over their rows, and the first product applies the activation to what it accumulated. The backward
computes the activation again from gate and up, in one pass with its gradient and that of the routing weights. Sums over
a token's choices are taken in a fixed order.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kernelkit.kernels.dtypes import as_in_a_product
from kernelkit.kernels.lean_op import differentiable_op, lean_op
from kernelkit.kernels.moe_experts.triton_activation_kernels import of_activation
from kernelkit.kernels.moe_experts.triton_grouped_kernels import Grouped
from kernelkit.kernels.moe_experts.triton_passes_kernels import combine, of_bias, of_routing, spread
from kernelkit.kernels.routing import route
from kernelkit.kernels.swiglu_mlp.eager import ALPHA, LIMIT
from kernelkit.kernels.triton_launch import empty_like


def _empty_outputs(
    states: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor, gate_up_bias: Tensor | None,
    down_bias: Tensor | None, index: Tensor, order: Tensor, back: Tensor, ends: Tensor, clamp: list[float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    width = down_proj.shape[1 if clamp else 2]
    return empty_like(states), states.new_empty(index.numel(), 2 * width)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:-1], output[1])
    ctx.clamp = inputs[-1]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, gradient: Tensor | None, _: Any) -> tuple[Any, ...]:
    if gradient is None:
        return (None,) * 11
    found = _gradients(gradient, *ctx.saved_tensors, ctx.clamp)
    biases = found[4:] if ctx.clamp else (None, None)
    return *found[:4], *biases, None, None, None, None, None


@differentiable_op("triton_moe_experts", fake=_empty_outputs, save=_save, differentiate=_differentiate)
def _experts(
    states: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor, gate_up_bias: Tensor | None,
    down_bias: Tensor | None, index: Tensor, order: Tensor, back: Tensor, ends: Tensor, clamp: list[float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output [T, H], and gate and up [T * K, 2I] of each row, as the weight has them."""
    output, gate_up = _empty_outputs(
        states, weights, gate_up_proj, down_proj, gate_up_bias, down_bias, index, order, back, ends, clamp
    )
    if not len(states):
        return output, gate_up
    hidden, width = states.shape[1], gate_up.shape[1] // 2
    activated, rows = states.new_empty(len(order), width), states.new_empty(len(order), hidden)
    grouped = Grouped(len(order), ends, gate_up_proj, down_proj, clamp)
    spread(states.contiguous(), back, rows)
    grouped.up(rows, _dense(gate_up_bias), gate_up, activated)
    grouped.down(activated, _dense(down_bias), rows)
    combine(rows, weights.contiguous(), index.contiguous(), back, len(ends), output)
    return output, gate_up


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _empty_gradients(
    gradient: Tensor, states: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor,
    gate_up_bias: Tensor | None, down_bias: Tensor | None, index: Tensor, order: Tensor, back: Tensor, ends: Tensor,
    gate_up: Tensor, clamp: list[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    first, second, third, fourth = (empty_like(tensor) for tensor in (states, weights, gate_up_proj, down_proj))
    fifth, sixth = (states.new_empty(0) if bias is None else empty_like(bias) for bias in (gate_up_bias, down_bias))
    return first, second, third, fourth, fifth, sixth


@lean_op("triton_moe_experts_backward", fake=_empty_gradients)
def _gradients(
    gradient: Tensor, states: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor,
    gate_up_bias: Tensor | None, down_bias: Tensor | None, index: Tensor, order: Tensor, back: Tensor, ends: Tensor,
    gate_up: Tensor, clamp: list[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    found = _empty_gradients(
        gradient, states, weights, gate_up_proj, down_proj, gate_up_bias, down_bias, index, order, back, ends, gate_up,
        clamp,
    )  # fmt: skip
    of_states, of_weights, of_up, of_down, of_up_bias, of_down_bias = found
    if not len(states):
        for each in found:
            each.zero_()
        return found
    gradient, states, weights, index = (each.contiguous() for each in (gradient, states, weights, index))
    of_gate_up, rows = empty_like(gate_up), states.new_empty(len(order), states.shape[1])
    activated = states.new_empty(len(order), gate_up.shape[1] // 2)
    grouped = Grouped(len(order), ends, gate_up_proj, down_proj, clamp)
    spread(gradient, back, rows)
    grouped.of_activated(rows, activated)
    shares = of_activation(activated, weights, gate_up, order, ends, of_gate_up, clamp)
    of_routing(gradient, _dense(down_bias), shares, index, back, len(ends), of_weights)
    grouped.of_down(rows, activated, of_down)
    spread(states, back, rows)
    grouped.of_up(rows, of_gate_up, of_up)
    grouped.of_rows(of_gate_up, rows)
    combine(rows, None, index, back, len(ends), of_states)
    if clamp:
        of_bias(of_gate_up, None, order, ends, of_up_bias)
        of_bias(gradient, weights, order, ends, of_down_bias)
    return found


def _apply(
    states: Tensor, index: Tensor, weights: Tensor, up: Tensor, down: Tensor, biases: Any, clamp: list[float]
) -> Tensor:
    # Autocast leaves biases as they are; they are added in float32.
    inputs, up, down = as_in_a_product(states, up, down)
    routing = route(index, len(up))
    output, _ = _experts(inputs, weights, up, down, *biases, index, routing.order, routing.back, routing.ends, clamp)
    return output.to(states.dtype)  # type: ignore[no-any-return]  # an operator has no types


def moe_experts(
    hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """Sort the choices by expert, and run grouped products over their rows. Nothing waits for the device."""
    return _apply(hidden_states, top_k_index, top_k_weights, gate_up_proj, down_proj, (None, None), [])


def gpt_oss(
    hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor,
    gate_up_proj_bias: Tensor, down_proj_bias: Tensor, alpha: float = ALPHA, limit: float = LIMIT,
) -> Tensor:  # fmt: skip
    """The same for the experts of gpt-oss."""
    biases = gate_up_proj_bias, down_proj_bias
    return _apply(hidden_states, top_k_index, top_k_weights, gate_up_proj, down_proj, biases, [alpha, limit])
