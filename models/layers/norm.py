"""Normalisation."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from kernelkit.containers.bindings import Bindings
from kernelkit.models.layers.kernel_module import KernelModule
from kernelkit.spec import Kernel


class RMSNorm(KernelModule):
    """Root mean square normalisation of the last dimension, as ``LlamaRMSNorm``."""

    rms_norm: Kernel
    computes: ClassVar[str] = "rms_norm"

    def __init__(self, hidden_size: int, eps: float, kernels: Bindings) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps
        self.bind(kernels, "rms_norm")

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise [..., hidden_size]."""
        return self.rms_norm(hidden_states, self.weight, self.variance_epsilon)

    def extra_repr(self) -> str:
        """Shape and epsilon, as HF prints them."""
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"
