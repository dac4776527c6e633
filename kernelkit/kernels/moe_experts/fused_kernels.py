"""The experts in six grouped products and a few passes between them, whosever the products are.

The first product applies the activation to what it accumulated, and only gate and up are kept for the backward, which
computes the activation again. The passes are Triton's: tokens are spread over their rows, which took less on an H200
than products that gather them, and sums over a token's choices are taken in a fixed order.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from kernelkit.kernels.dtypes import as_in_a_product
from kernelkit.kernels.lean_op import differentiable_op, lean_op
from kernelkit.kernels.moe_experts.triton_passes_kernels import combine, of_bias, of_routing, spread
from kernelkit.kernels.routing import route
from kernelkit.kernels.swiglu_mlp.eager import ALPHA, LIMIT
from kernelkit.kernels.triton_launch import empty_like
from kernelkit.spec import Kernel


class Grouped(Protocol):
    """The products of one forward or backward, over the rows [S = T * K] of its choices.

    Args:
        choices: how many there are.
        ends: as ``route`` gives them.
        up, down: the experts' weights.
        clamp: alpha and limit of gpt-oss, whose weights are [E, depth, columns]; empty for the variant ``standard``.
    """

    def __init__(self, choices: int, ends: Tensor, up: Tensor, down: Tensor, clamp: list[float]) -> None: ...

    def up(self, rows: Tensor, bias: Tensor | None, gate_up: Tensor, activated: Tensor) -> None:
        """Write gate and up [S, 2I] of the ``rows`` [S, H], in an order of its own, and the activation [S, I]."""

    def down(self, activated: Tensor, bias: Tensor | None, output: Tensor) -> None:
        """Write the rows [S, H] of what the experts give."""

    def of_gate_up(
        self, gradient: Tensor, weights: Tensor, order: Tensor, gate_up: Tensor, of_gate_up: Tensor, activated: Tensor
    ) -> Tensor:
        """Write the gradient [S, 2I] of gate and up, and the weighted activation [S, I].

        Args:
            gradient: [S, H], that of each row's token.
            weights, order: the routing weights [T, K], and for each row the number of its own.
            gate_up: as ``up`` wrote it.
            of_gate_up, activated: written.

        Returns:
            [S] float32, the gradient of each row's routing weight, without the bias's.
        """

    def of_down(self, gradient: Tensor, activated: Tensor, output: Tensor) -> None:
        """Write the gradient of the second weight, from that of each row's token and the weighted activation."""

    def of_up(self, rows: Tensor, of_gate_up: Tensor, output: Tensor) -> None:
        """Write the gradient of the first weight."""

    def of_rows(self, of_gate_up: Tensor, output: Tensor) -> None:
        """Write the gradient [S, H] of the rows that the experts were given."""


class _Call(NamedTuple):
    """What the experts are given, routed."""

    states: Tensor
    weights: Tensor
    gate_up_proj: Tensor
    down_proj: Tensor
    gate_up_bias: Tensor | None
    down_bias: Tensor | None
    top_k_index: Tensor
    order: Tensor
    back: Tensor
    ends: Tensor
    clamp: list[float]

    def grouped(self, products: type[Grouped]) -> Grouped:
        return products(len(self.order), self.ends, self.gate_up_proj, self.down_proj, self.clamp)


def _empty_outputs(*inputs: Any) -> tuple[Tensor, Tensor]:
    call = _Call(*inputs)
    width = call.down_proj.shape[1 if call.clamp else 2]
    return empty_like(call.states), call.states.new_empty(call.top_k_index.numel(), 2 * width)


def _forward(products: type[Grouped], call: _Call) -> tuple[Tensor, Tensor]:
    output, gate_up = _empty_outputs(*call)
    if not len(output):
        return output, gate_up
    states, experts = call.states.contiguous(), call.grouped(products)
    activated = states.new_empty(len(gate_up), gate_up.shape[1] // 2)
    rows = states.new_empty(len(gate_up), states.shape[1])
    spread(states, call.back, rows)
    experts.up(rows, _dense(call.gate_up_bias), gate_up, activated)
    experts.down(activated, _dense(call.down_bias), rows)
    combine(rows, call.weights.contiguous(), call.top_k_index.contiguous(), call.back, len(call.ends), output)
    return output, gate_up


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _empty_gradients(gradient: Tensor, gate_up: Tensor, trained: list[bool], *inputs: Any) -> tuple[Tensor, ...]:
    wanted = True, True, *trained
    return tuple(
        empty_like(tensor) if want else gradient.new_empty(0) for tensor, want in zip(inputs, wanted, strict=False)
    )


def _backward(
    products: type[Grouped], gradient: Tensor, gate_up: Tensor, trained: list[bool], call: _Call
) -> tuple[Tensor, ...]:
    found = _empty_gradients(gradient, gate_up, trained, *call)
    of_states, of_weights, of_up, of_down, of_up_bias, of_down_bias = found
    if not len(gradient):
        for each in found:
            each.zero_()
        return found
    order, back, ends, experts = call.order, call.back, call.ends, call.grouped(products)
    gradient, states, weights, index = (
        each.contiguous() for each in (gradient, call.states, call.weights, call.top_k_index)
    )
    of_gate_up, rows = empty_like(gate_up), states.new_empty(len(order), states.shape[1])
    activated = states.new_empty(len(order), gate_up.shape[1] // 2)
    spread(gradient, back, rows)
    shares = experts.of_gate_up(rows, weights, order, gate_up, of_gate_up, activated)
    of_routing(gradient, _dense(call.down_bias), shares, index, back, len(ends), of_weights)
    up_trained, down_trained, up_bias_trained, down_bias_trained = trained
    if down_trained:
        experts.of_down(rows, activated, of_down)
    if up_trained:
        spread(states, back, rows)
        experts.of_up(rows, of_gate_up, of_up)
    experts.of_rows(of_gate_up, rows)
    combine(rows, None, index, back, len(ends), of_states)
    if up_bias_trained:
        of_bias(of_gate_up, None, order, ends, of_up_bias)
    if down_bias_trained:
        of_bias(gradient, weights, order, ends, of_down_bias)
    return found


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:-1], output[1])
    ctx.clamp = inputs[-1]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def fused(impl: str, products: type[Grouped]) -> tuple[Kernel, Kernel]:
    """The kernels of the variants ``standard`` and ``gpt_oss``, made of these products.

    Args:
        impl: the name of the implementation; its operators are named after it.
        products: whose.
    """

    @lean_op(f"{impl}_moe_experts_backward", fake=_empty_gradients)
    def gradients(
        gradient: Tensor, gate_up: Tensor, trained: list[bool], states: Tensor, weights: Tensor, gate_up_proj: Tensor,
        down_proj: Tensor, gate_up_bias: Tensor | None, down_bias: Tensor | None, index: Tensor, order: Tensor,
        back: Tensor, ends: Tensor, clamp: list[float],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        inputs = states, weights, gate_up_proj, down_proj, gate_up_bias, down_bias, index, order, back, ends, clamp
        return _backward(products, gradient, gate_up, trained, _Call(*inputs))  # type: ignore[return-value]  # of six

    def differentiate(ctx: Any, gradient: Tensor | None, _: Any) -> tuple[Any, ...]:
        if gradient is None:
            return (None,) * len(_Call._fields)
        *inputs, gate_up = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:6]
        found = gradients(gradient, gate_up, [*wanted[2:]], *inputs, ctx.clamp)
        return *(each if want else None for each, want in zip(found, wanted, strict=True)), *[None] * 5

    @differentiable_op(f"{impl}_moe_experts", fake=_empty_outputs, save=_save, differentiate=differentiate)
    def experts(
        states: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor, gate_up_bias: Tensor | None,
        down_bias: Tensor | None, index: Tensor, order: Tensor, back: Tensor, ends: Tensor, clamp: list[float],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        inputs = states, weights, gate_up_proj, down_proj, gate_up_bias, down_bias, index, order, back, ends, clamp
        return _forward(products, _Call(*inputs))

    def routed(states: Tensor, index: Tensor, weights: Tensor, up: Tensor, down: Tensor, *rest: Any) -> Tensor:
        # Autocast leaves biases as they are; they are added in float32.
        inputs, up, down = as_in_a_product(states, up, down)
        *biases, clamp = rest
        routing = route(index, len(up))
        output, _ = experts(inputs, weights, up, down, *biases, index, routing.order, routing.back, routing.ends, clamp)
        return output.to(states.dtype)  # type: ignore[no-any-return]  # an operator has no types

    def moe_experts(
        hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
    ) -> Tensor:
        """Sort the choices by expert, and run grouped products over their rows. Nothing waits for the device."""
        return routed(hidden_states, top_k_index, top_k_weights, gate_up_proj, down_proj, None, None, [])

    def gpt_oss(
        hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor,
        gate_up_proj_bias: Tensor, down_proj_bias: Tensor, alpha: float = ALPHA, limit: float = LIMIT,
    ) -> Tensor:  # fmt: skip
        """The same for the experts of gpt-oss."""
        rest = gate_up_proj_bias, down_proj_bias, [alpha, limit]
        return routed(hidden_states, top_k_index, top_k_weights, gate_up_proj, down_proj, *rest)

    return moe_experts, gpt_oss
