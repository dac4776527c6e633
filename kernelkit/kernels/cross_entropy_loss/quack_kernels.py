"""Quack's linear cross-entropy as a pure kernel.

Of quack's two ways only the one that scales exponentials is taken. The other rounds its logits to sixteen bits, which
costs several per cent of the gradient; this one stores exp(logit - k) with a power of two of its own for each row and
tile, so that sums, losses and the logits of labels come from float32. Its gradients are those of the sum: of the weight
in float32, added up over the chunks, and of the hidden states in bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
from quack.linear_cross_entropy import scaled_exp_linear_cross_entropy_fwd
from torch import Tensor

from kernelkit.kernels.aligned import aligned
from kernelkit.kernels.chunked_head import as_rows
from kernelkit.kernels.cross_entropy_loss.eager import project
from kernelkit.kernels.cross_entropy_loss.quack import QuackCrossEntropyOptions
from kernelkit.kernels.custom_op import custom_op
from kernelkit.kernels.scaled_gradient import register_scaled_gradients
from kernelkit.ops.distillation_loss import per_item
from kernelkit.spec import Kernel

TILE = 128


def cross_entropy_loss(options: QuackCrossEntropyOptions) -> Kernel:
    """The kernel. Where logits are asked for, they come from a product of their own.

    It raises a ValueError for what quack does not compute, by name; see ``_check``.
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
        rows, head = as_rows(hidden_states, weight)
        others = {"bias": bias is not None, "softcap": softcap is not None, "logit_scale": logit_scale != 1.0}
        _check(rows, head, {**others, "z_loss_coef": z_loss_coef != 0.0})
        targets = labels.reshape(-1).to(rows.device)
        wanted = [torch.is_grad_enabled() and tensor.requires_grad for tensor in (rows, head)]
        total, *_ = _sum(rows, head, None, targets, ignore_index, options.chunk_size, wanted)
        loss = per_item(total, targets != ignore_index, num_items_in_batch)
        return loss, project(hidden_states, weight, None, softcap=None, logit_scale=1.0) if return_logits else None

    return kernel


def _check(rows: Tensor, weight: Tensor, given: dict[str, bool]) -> None:
    vocabulary, hidden = weight.shape
    refused = {
        **{f"no {name}": there for name, there in given.items()},
        f"bfloat16, not {rows.dtype} and {weight.dtype}": {rows.dtype, weight.dtype} != {torch.bfloat16},
        f"a vocabulary of multiples of {TILE}, not {vocabulary}": vocabulary % TILE != 0,
        # A tile of as many tokens is not to be avoided there: see _chunk.
        f"hidden sizes that are multiples of 8 and not {TILE}, not {hidden}": hidden % 8 != 0 or hidden == TILE,
    }
    if reasons := [reason for reason, holds in refused.items() if holds]:
        raise ValueError(
            f"cross_entropy_loss: quack takes {' and '.join(reasons)}; name another, such as triton, compile or eager"
        )


def _empty_output(rows: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_rows, of_weight = others[-1]
    return (
        rows.new_empty((), dtype=torch.float32),
        rows.new_empty(rows.shape if of_rows else 0),
        rows.new_empty(weight.shape, dtype=torch.float32) if of_weight else rows.new_empty(0),
        rows.new_empty(0),
    )


def _scratch(*args: Any) -> int:
    weight, labels, chunk_size = args[1], args[3], args[5]
    return int(min(_padded(labels.numel()), chunk_size) * weight.shape[0] * weight.element_size())


@custom_op("quack_linear_cross_entropy", fake=_empty_output, scratch=_scratch)
def _sum(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    chunk_size: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The summed loss of the labels [T], its gradients for rows [T, H] and weight where ``wanted``, and for no bias."""
    tokens = rows.shape[0]
    if tokens == 0:
        total, of_rows, of_weight, of_bias = (output.zero_() for output in _empty_output(rows, weight, wanted))
        return total, of_rows, of_weight, of_bias
    losses, of_rows, of_weight = scaled_exp_linear_cross_entropy_fwd(
        aligned(rows),
        aligned(weight),
        labels.contiguous(),
        _chunk(tokens, rows.shape[1], chunk_size),
        ignore_index,
        need_dx=wanted[0],
        need_dw=wanted[1],
    )
    return (
        losses[:tokens].sum(),
        rows.new_empty(0) if of_rows is None else of_rows[:tokens],
        rows.new_empty(0) if of_weight is None else of_weight,
        rows.new_empty(0),
    )


def _chunk(tokens: int, hidden: int, most: int) -> int:
    """The largest size of a chunk with which none, nor the padded last one, has as many tokens as the hidden size.

    Quack could not tell then whether a factor of the rows is one of the columns.
    """
    for size in range(most, TILE, -TILE):
        full, last = (tokens - 1) // size, _padded((tokens - 1) % size + 1)
        if last != hidden and (size != hidden or full == 0):
            return size
    return TILE


def _padded(tokens: int) -> int:
    return -(-tokens // TILE) * TILE


register_scaled_gradients(_sum, "cross_entropy_loss")
