"""The experts in two grouped matrix products, ``torch.nn.functional.grouped_mm``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernelkit.kernels.dtypes import as_in_a_product
from kernelkit.kernels.grouped_mm import grouped_mm
from kernelkit.kernels.moe_experts.eager import expert_mlp
from kernelkit.spec import KernelSpec


def moe_experts(
    hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """Sort the choices by expert, run each expert on its rows, and add up in float32. Nothing waits for the device."""
    experts, top_k = gate_up_proj.shape[0], top_k_index.shape[1]
    states, gate_up_proj, down_proj = as_in_a_product(hidden_states, gate_up_proj, down_proj)
    if hidden_states.shape[0] == 0:
        # grouped_mm has no backward for no rows; this is nothing too, and gives every gradient its zeros.
        return (expert_mlp(states, gate_up_proj[0], down_proj[0]) * top_k_weights[:, :1]).to(hidden_states.dtype)

    choices, order = top_k_index.reshape(-1).int().sort(stable=True)
    back = torch.empty_like(order).scatter(0, order, torch.arange(order.shape[0], device=order.device))
    # Sentinels come last, behind the last expert's end, where grouped_mm neither reads nor writes.
    ends = torch.searchsorted(choices, torch.arange(experts, device=order.device).int(), right=True, out_int32=True)
    present = (top_k_index < experts).unsqueeze(-1)

    # type: torch.autograd.Function.apply has no types.
    rows = _Dispatch.apply(states, order // top_k, back, present)  # type: ignore[no-untyped-call]  # as said above
    gate, up = grouped_mm(rows, gate_up_proj.transpose(1, 2), ends).chunk(2, dim=-1)
    rows = grouped_mm(F.silu(gate) * up, down_proj.transpose(1, 2), ends)
    outputs = _Permute.apply(rows, back, order).view(*top_k_index.shape, -1)  # type: ignore[no-untyped-call]  # as above
    outputs = torch.where(present, outputs, 0) * top_k_weights.unsqueeze(-1)
    return outputs.sum(dim=1).to(hidden_states.dtype)


class _Dispatch(torch.autograd.Function):
    """Copy each token [T, H] to the rows [T * K, H] of its choices.

    The backward adds up what comes back, in a fixed order and without what unchosen rows hold, where that of indexing
    would sort the indices again and read every row.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, tokens: Tensor, back: Tensor, present: Tensor) -> Tensor:
        ctx.save_for_backward(back, present)
        return states.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        back, present = ctx.saved_tensors
        gradient = gradient.index_select(0, back).view(*present.shape[:2], -1)
        return torch.where(present, gradient, 0).sum(dim=1), None, None, None


class _Permute(torch.autograd.Function):
    """``rows[order]``, whose backward is ``gradient[inverse]``: a copy instead of an addition at each index."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse), None, None


SPECS = (
    KernelSpec(
        op="moe_experts",
        variant="standard",
        name="torch",
        factory=f"{__name__}:moe_experts",
        dtypes=("float32", "bfloat16", "float16"),
        description="Two grouped matrix products of torch, which stock transformers uses too.",
    ),
)
