"""Liger's RMS normalisation for Ascend as pure kernels."""

from __future__ import annotations

from liger_kernel.ops.backends._ascend.ops.rms_norm import rms_norm_backward, rms_norm_forward
from torch import Tensor

from kernelkit.kernels.rms_norm.liger_shared_kernels import variants


def _forward(rows: Tensor, weight: Tensor, eps: float, offset: float, casting: int) -> tuple[Tensor, Tensor]:
    output, _, roots, _ = rms_norm_forward(rows, weight, eps, offset, casting)
    return output, roots


def _backward(
    gradient: Tensor, rows: Tensor, weight: Tensor, roots: Tensor, offset: float, casting: int
) -> tuple[Tensor, Tensor]:
    of_rows, of_weight = rms_norm_backward(gradient, rows, weight, roots, offset, casting, in_place=False)
    return of_rows, of_weight


standard, zero_centered, fp32_weight = variants("liger_npu_rms_norm", _forward, _backward)
