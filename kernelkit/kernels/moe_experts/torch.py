"""The experts in grouped matrix products, ``torch.nn.functional.grouped_mm``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernelkit.kernels.dtypes import as_in_a_product
from kernelkit.kernels.grouped_mm import grouped_mm, grouped_outer
from kernelkit.kernels.moe_experts.eager import clamped_gate
from kernelkit.kernels.routing import Routing, route
from kernelkit.kernels.swiglu_mlp.eager import ALPHA, LIMIT
from kernelkit.spec import KernelSpec


def moe_experts(
    hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """Sort the choices by expert, run each expert on its rows, and add up in float32. Nothing waits for the device."""
    return _apply(hidden_states, top_k_index, top_k_weights, gate_up_proj, down_proj, None, None, None)


def gpt_oss(
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    gate_up_proj_bias: Tensor,
    down_proj_bias: Tensor,
    alpha: float = ALPHA,
    limit: float = LIMIT,
) -> Tensor:
    """The same for the experts of gpt-oss."""
    rest = gate_up_proj_bias, down_proj_bias, (alpha, limit)
    return _apply(hidden_states, top_k_index, top_k_weights, gate_up_proj, down_proj, *rest)


def _apply(states: Tensor, index: Tensor, weights: Tensor, up: Tensor, down: Tensor, *rest: Any) -> Tensor:
    # Autocast leaves biases as they are, and what they are added to is then as wide.
    inputs, up, down = as_in_a_product(states, up, down)
    *biases, clamp = rest
    routing = route(index, len(up))
    arguments = (inputs, weights, up, down, *biases, index, *routing, clamp)
    output: Tensor = _Experts.apply(*arguments)  # type: ignore[no-untyped-call]  # untyped in torch
    return output.to(states.dtype)


class _Experts(torch.autograd.Function):
    """All of it, so that only gate and up are kept of what each row gives.

    It is made of torch's functions and no operator but products, so that ``torch.compile`` can fuse what is between
    them. Rows of sentinels hold unwritten memory throughout; no product reads them, and sums leave them out.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weights: Tensor,
        gate_up_proj: Tensor,
        down_proj: Tensor,
        gate_up_bias: Tensor | None,
        down_bias: Tensor | None,
        index: Tensor,
        experts: Tensor,
        order: Tensor,
        back: Tensor,
        ends: Tensor,
        clamp: tuple[float, float] | None,
    ) -> Tensor:
        routing, ctx.clamp = Routing(experts, order, back, ends), clamp
        if len(states) == 0:
            gate_up, output = states.new_empty(0, ends.shape[0]), torch.zeros_like(states)
        else:
            rows = states.index_select(0, order // index.shape[1])
            gate_up = _biased(grouped_mm(rows, _right(gate_up_proj, clamp), ends), gate_up_bias, experts)
            rows = grouped_mm(_activate(gate_up, clamp).to(states.dtype), _right(down_proj, clamp), ends)
            output = _sum_of_choices(_biased(rows, down_bias, experts), weights, index, routing, len(ends))
        ctx.save_for_backward(
            states, weights, gate_up_proj, down_proj, gate_up_bias, down_bias, index, *routing, gate_up
        )
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("moe_experts: the backward of torch has no autograd formula, so create_graph=True fails")
        states, weights, gate_up_proj, down_proj, gate_up_bias, down_bias, index, *routing, gate_up = ctx.saved_tensors
        experts, order, back, ends = routing
        if len(states) == 0:
            some = states, weights, gate_up_proj, down_proj, gate_up_bias, down_bias
            return *(None if tensor is None else torch.zeros_like(tensor) for tensor in some), *[None] * 6
        clamp, tokens = ctx.clamp, order // index.shape[1]
        of_rows = gradient.to(states.dtype).index_select(0, tokens)
        row_weights = weights.reshape(-1).index_select(0, order).unsqueeze(-1)

        # Of the unweighted gradient, since that of the weights is its product with what was activated.
        of_activated = grouped_mm(of_rows, _left(down_proj, clamp), ends)
        activated = _activate(gate_up, clamp)
        of_row_weights = (of_activated.float() * activated).sum(dim=-1)
        of_gate_up = _activation_gradient(of_activated * row_weights, gate_up, clamp).to(states.dtype)

        of_down = of_up = of_down_bias = of_up_bias = None
        if ctx.needs_input_grad[3]:
            inputs = (activated * row_weights).to(states.dtype)
            of_down = _weight_gradient(inputs, of_rows, ends, clamp)
        if down_bias is not None:
            of_row_weights = of_row_weights + (of_rows.float() * _of_each(down_bias, experts)).sum(dim=-1)
            of_down_bias = _sum_of_rows(row_weights.to(states.dtype), of_rows, ends)
        if ctx.needs_input_grad[2]:
            of_up = _weight_gradient(states.index_select(0, tokens), of_gate_up, ends, clamp)
        if gate_up_bias is not None:
            of_up_bias = _sum_of_rows(states.new_ones(len(order), 1), of_gate_up, ends)

        of_rows = grouped_mm(of_gate_up, _left(gate_up_proj, clamp), ends)
        of_states = _sum_of_choices(of_rows, None, index, Routing(*routing), len(ends))
        of_weights = of_row_weights.index_select(0, back).view(index.shape)
        of_weights = torch.where(index < len(ends), of_weights, 0).to(weights.dtype)
        return of_states.to(states.dtype), of_weights, of_up, of_down, of_up_bias, of_down_bias, *[None] * 6


def _right(weight: Tensor, clamp: Any) -> Tensor:
    """The weight as the right side of the forward's product: gpt-oss keeps it so."""
    return weight.transpose(1, 2) if clamp is None else weight


def _left(weight: Tensor, clamp: Any) -> Tensor:
    return weight if clamp is None else weight.transpose(1, 2)


def _weight_gradient(inputs: Tensor, of_outputs: Tensor, ends: Tensor, clamp: Any) -> Tensor:
    return grouped_outer(of_outputs, inputs, ends) if clamp is None else grouped_outer(inputs, of_outputs, ends)


def _of_each(bias: Tensor, experts: Tensor) -> Tensor:
    return bias.index_select(0, experts.int().clamp(max=len(bias) - 1))


def _biased(rows: Tensor, bias: Tensor | None, experts: Tensor) -> Tensor:
    return rows if bias is None else rows + _of_each(bias, experts)


def _sum_of_rows(weights: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    """[E, I]: the weighted sum of each expert's rows, as a product, which adds up in float32 and in a fixed order."""
    # Products ask for sixteen bytes.
    return grouped_outer(weights.expand(-1, 16 // weights.element_size()).contiguous(), rows, ends)[:, 0]


def _sum_of_choices(rows: Tensor, weights: Tensor | None, index: Tensor, routing: Routing, experts: int) -> Tensor:
    """Add up the rows [T * K, H] of each token's choices to [T, H], in a fixed order."""
    present = (index < experts).unsqueeze(-1)
    chosen = torch.where(present, rows.index_select(0, routing.back).view(*index.shape, -1), 0)
    return (chosen if weights is None else chosen * weights.unsqueeze(-1)).sum(dim=1)


def _activate(gate_up: Tensor, clamp: tuple[float, float] | None) -> Tensor:
    if clamp is not None:
        return clamped_gate(gate_up, *clamp)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _activation_gradient(of_activated: Tensor, gate_up: Tensor, clamp: tuple[float, float] | None) -> Tensor:
    if clamp is None:
        gate, up = gate_up.chunk(2, dim=-1)
        of_gate = torch.ops.aten.silu_backward(of_activated * up, gate)
        return torch.cat((of_gate, of_activated * F.silu(gate)), dim=-1)
    alpha, limit = clamp
    gate, up = gate_up[..., ::2].float(), gate_up[..., 1::2].float()
    clamped, share = gate.clamp(max=limit), torch.sigmoid(gate.clamp(max=limit) * alpha)
    slope = share * (1 + alpha * clamped * (1 - share)) * (gate <= limit)
    of_gate = of_activated * (up.clamp(min=-limit, max=limit) + 1) * slope
    of_up = of_activated * clamped * share * (up.abs() <= limit)
    return torch.stack((of_gate, of_up), dim=-1).flatten(-2)


SPECS = tuple(
    KernelSpec(
        op="moe_experts",
        variant=variant,
        name="torch",
        factory=f"{__name__}:{function}",
        dtypes=("float32", "bfloat16", "float16"),
        description="Grouped products of torch, as in stock transformers; gate and up are kept for the backward.",
    )
    for variant, function in (("standard", "moe_experts"), ("gpt_oss", "gpt_oss"))
)
