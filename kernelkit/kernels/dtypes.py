"""In which dtype a step is computed."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, where HF writes ``.float()``.

    float64 stays as it is, so that the eager kernels are their own reference in double precision.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def as_in_a_product(*tensors: Tensor) -> tuple[Tensor, ...]:
    """``tensors`` in the dtype in which ``F.linear`` would multiply them: that of autocast where it is on.

    Kernels that contain a matrix product are opaque to autocast and would otherwise run in the dtype of the weights.
    """
    kind = tensors[0].device.type
    if not _has_autocast(kind) or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(tensor.to(dtype) for tensor in tensors)


def without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Autocast switched off on the device of ``tensor``, where products are to stay in the dtype of their operands."""
    kind = tensor.device.type
    if not _has_autocast(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # untyped in torch
def _has_autocast(kind: str) -> bool:
    # torch 2.11 cannot trace it.
    return torch.amp.is_autocast_available(kind)
