"""Liger's RMS normalisation as pure kernels."""

from __future__ import annotations

from liger_kernel.ops.rms_norm import rms_norm_backward, rms_norm_forward
from liger_kernel.ops.utils import calculate_settings
from torch import Tensor

from kernelkit.kernels.rms_norm.liger_shared_kernels import variants


def _forward(rows: Tensor, weight: Tensor, eps: float, offset: float, casting: int) -> tuple[Tensor, Tensor]:
    output, _, roots, *_ = rms_norm_forward(rows, weight, eps, offset, casting, _row_mode(rows))
    return output, roots


def _backward(
    gradient: Tensor, rows: Tensor, weight: Tensor, roots: Tensor, offset: float, casting: int
) -> tuple[Tensor, Tensor]:
    block_size, num_warps = calculate_settings(rows.shape[1])
    in_place = False
    of_rows, of_weight = rms_norm_backward(
        gradient, rows, weight, roots, offset, casting, block_size, num_warps, in_place, _row_mode(rows)
    )
    return of_rows, of_weight


def _row_mode(rows: Tensor) -> bool | None:
    # For many short rows Liger takes 16 at a time, and its backward reads past the last where fewer are left.
    return None if rows.shape[0] % 16 == 0 else True


standard, zero_centered, fp32_weight = variants("liger_rms_norm", _forward, _backward)
