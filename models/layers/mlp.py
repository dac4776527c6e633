"""The dense feed-forward block."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedConfig

from kernelkit.containers.bindings import Bindings
from kernelkit.models.layers.kernel_module import KernelModule
from kernelkit.spec import Kernel

ACTIVATION_VARIANTS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""Variant of swiglu_mlp by HF's ``hidden_act``."""


def activation_variant(hidden_act: str) -> str:
    """The variant of swiglu_mlp for an HF activation name.

    Raises:
        ValueError: for an activation that no variant computes.
    """
    if hidden_act not in ACTIVATION_VARIANTS:
        known = ", ".join(ACTIVATION_VARIANTS)
        raise ValueError(f"hidden_act={hidden_act!r} has no swiglu_mlp variant; supported: {known}")
    return ACTIVATION_VARIANTS[hidden_act]


class GatedMLP(KernelModule):
    """down(act(gate(x)) * up(x)), as ``LlamaMLP``."""

    swiglu_mlp: Kernel

    def __init__(self, config: PreTrainedConfig, kernels: Bindings) -> None:
        super().__init__()
        hidden, width, bias = config.hidden_size, config.intermediate_size, getattr(config, "mlp_bias", False)
        self.gate_proj = nn.Linear(hidden, width, bias=bias)
        self.up_proj = nn.Linear(hidden, width, bias=bias)
        self.down_proj = nn.Linear(width, hidden, bias=bias)
        self.bind(kernels, "swiglu_mlp", activation_variant(config.hidden_act))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map [..., hidden_size] to [..., hidden_size]."""
        return self.down_proj(self.swiglu_mlp(self.gate_proj(hidden_states), self.up_proj(hidden_states)))
