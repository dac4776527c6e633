"""Liger's fused linear cross-entropy as a pure kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward
from torch import Tensor

from kernelkit.kernels.cross_entropy_loss.eager import project
from kernelkit.kernels.cross_entropy_loss.liger import LigerCrossEntropyOptions
from kernelkit.kernels.custom_op import custom_op
from kernelkit.kernels.dtypes import as_in_a_product
from kernelkit.kernels.scaled_gradient import refuse_create_graph
from kernelkit.spec import Kernel


def cross_entropy_loss(options: LigerCrossEntropyOptions) -> Kernel:
    """The kernel. Where logits are asked for, they come from a product of their own.

    It raises a ValueError for a ``logit_scale`` that would be rounded: one that is no power of two, below float32.
    """

    def kernel(
        hidden_states: Tensor,
        weight: Tensor,
        labels: Tensor,
        *,
        bias: Tensor | None = None,
        ignore_index: int = -100,
        num_items_in_batch: int | Tensor | None = None,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        z_loss_coef: float = 0.0,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        rows, targets = hidden_states.reshape(-1, hidden_states.shape[-1]), labels.reshape(-1).to(hidden_states.device)
        fused = _scaled(rows, weight, bias, logit_scale)
        gradients = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in fused]
        total, *_ = _fused(
            *fused,
            targets,
            ignore_index,
            softcap,
            z_loss_coef,
            options.accumulate_in_float32,
            any(gradients),
            gradients[1],
        )
        loss = _divided(total, targets != ignore_index, num_items_in_batch)
        if not return_logits:
            return loss, None
        return loss, project(hidden_states, weight, bias, softcap=softcap, logit_scale=logit_scale)

    return kernel


def _scaled(
    rows: Tensor, weight: Tensor, bias: Tensor | None, logit_scale: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Liger has no factor of the logits, but that of a linear map may as well be one of its input and its bias."""
    rows, weight, *biases = as_in_a_product(rows, weight, *([] if bias is None else [bias]))
    if logit_scale != 1.0:
        if rows.dtype != torch.float32 and math.frexp(logit_scale)[0] not in (0.5, -0.5):
            raise ValueError(
                f"cross_entropy_loss: liger would round the hidden states times logit_scale={logit_scale} to "
                f"{rows.dtype}, which eager does not; use eager or compile, or a power of two"
            )
        rows, biases = rows * logit_scale, [bias * logit_scale for bias in biases]
    return rows, weight, biases[0] if biases else None


def _divided(total: Tensor, counted: Tensor, num_items_in_batch: int | Tensor | None) -> Tensor:
    if isinstance(num_items_in_batch, Tensor):
        return total / num_items_in_batch.to(total.device)
    if num_items_in_batch is not None:
        return total / num_items_in_batch
    # Without any label F.cross_entropy gives nan, and gradients that are zero.
    count = counted.sum()
    return torch.where(count > 0, total / count.clamp(min=1), torch.nan)


def _empty_output(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    softcap: float | None,
    z_loss_coef: float,
    accumulate_in_float32: bool,
    training: bool,
    weight_trained: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nothing = rows.new_empty(0)
    return (
        rows.new_empty((), dtype=torch.float32),
        rows.new_empty(rows.shape) if training else nothing,
        rows.new_empty(weight.shape) if weight_trained else nothing.clone(),
        rows.new_empty(bias.shape) if training and bias is not None else nothing.clone(),
    )


@custom_op("liger_linear_cross_entropy", fake=_empty_output)
def _fused(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    softcap: float | None,
    z_loss_coef: float,
    accumulate_in_float32: bool,
    training: bool,
    weight_trained: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Summed loss of rows [T, H] and labels [T], then the gradients of rows, weight and bias; empty if not wanted."""
    if rows.shape[0] == 0:
        outputs = _empty_output(
            rows,
            weight,
            bias,
            labels,
            ignore_index,
            softcap,
            z_loss_coef,
            accumulate_in_float32,
            training,
            weight_trained,
        )
        loss, of_rows, of_weight, of_bias = (output.zero_() for output in outputs)
        return loss, of_rows, of_weight, of_bias
    loss, _, _, _, *gradients = fused_linear_cross_entropy_forward(
        # Liger reads off the rows whether to compute any gradient, and off the weight whether to compute its own.
        rows.detach().requires_grad_(training),
        weight.detach().requires_grad_(weight_trained),
        labels,
        bias=bias,
        ignore_index=ignore_index,
        lse_square_scale=z_loss_coef,
        # The sum is divided outside: Liger does not know num_items_in_batch.
        reduction="sum",
        softcap=softcap,
        accum_dtype=torch.float32 if accumulate_in_float32 else None,
        # No ce_impl is named: Liger's dispatcher, which prefers other kernels where the CUTLASS DSL is installed, is
        # then not asked.
    )
    wanted = (training, weight_trained, training and bias is not None)
    of_rows, of_weight, of_bias = (
        gradient.contiguous() if want else rows.new_empty(0) for gradient, want in zip(gradients, wanted, strict=True)
    )
    return loss, of_rows, of_weight, of_bias


def _empty_like_gradients(factor: Tensor, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_rows, of_weight, of_bias = (gradient.new_empty(gradient.shape) for gradient in gradients)
    return of_rows, of_weight, of_bias


@custom_op("liger_linear_cross_entropy_backward", fake=_empty_like_gradients)
def _multiply(factor: Tensor, of_rows: Tensor, of_weight: Tensor, of_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Liger multiplies in place, which a second backward would find multiplied already.
    return of_rows * factor, of_weight * factor, of_bias * factor


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *gradients = output
    ctx.save_for_backward(*gradients)
    ctx.mark_non_differentiable(*gradients)
    # Else autograd would make zeros as large as the head for the gradient of its gradient.
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, factor: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    refuse_create_graph("cross_entropy_loss")
    products = _multiply(factor, *ctx.saved_tensors)
    of_inputs = [product if wanted else None for product, wanted in zip(products, ctx.needs_input_grad, strict=False)]
    return *of_inputs, *[None] * (len(ctx.needs_input_grad) - 3)


_fused.register_autograd(_differentiate, setup_context=_save)
