"""Matrix products that are float32 although their operands have sixteen bits."""

from __future__ import annotations

import torch
from torch import Tensor


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which operands like ``tensor`` are multiplied to float32.

    That is their own where the device has such a product (NVIDIA from Ampere on), else float32: products of sixteen-bit
    numbers are exact in it, but the operands take twice the memory. Who uses one operand several times converts it
    once. float64 stays as it is.
    """
    return tensor.dtype if _is_native(tensor) else torch.promote_types(tensor.dtype, torch.float32)


def mm(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """[M, K] @ [K, N] in at least float32, never rounded to the sixteen bits of the operands; in ``out`` if given."""
    if _is_native(left):
        return torch.mm(left, right, out_dtype=torch.float32, out=out)
    dtype = product_dtype(left)
    return torch.mm(left.to(dtype), right.to(dtype), out=out)


def add_mm_(total: Tensor, left: Tensor, right: Tensor, *, unwritten: bool = False) -> Tensor:
    """``total += left @ right`` for a ``total`` [M, N] of at least float32, and ``total``.

    One that is ``unwritten`` is written, and not read.
    """
    beta = 0 if unwritten else 1
    if _is_native(left):
        return torch.addmm(total, left, right, out_dtype=torch.float32, beta=beta, out=total)
    return total.addmm_(left.to(total.dtype), right.to(total.dtype), beta=beta)


def _is_native(tensor: Tensor) -> bool:
    if tensor.device.type != "cuda" or tensor.dtype not in (torch.bfloat16, torch.float16) or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(tensor.device) >= (8, 0)
