"""Norm, feed-forward block and experts of a stock model, with kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kernelkit.containers.bindings import Need
from kernelkit.models.injection.module import InjectedModule
from kernelkit.models.layers.mlp import ACTIVATION_VARIANTS
from kernelkit.spec import Kernel


class RMSNorm(InjectedModule):
    """As ``LlamaRMSNorm``."""

    variant = "standard"
    rms_norm: Kernel | None = None

    @classmethod
    def kernel_needs(cls, module: Any) -> list[Need]:
        """The norm."""
        return [Need("rms_norm", cls.variant)]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise [..., hidden_size]."""
        if self.rms_norm is None:
            return self.stock.forward(self, hidden_states)
        return self.rms_norm(hidden_states, self.weight, self.variance_epsilon)


class ZeroCenteredRMSNorm(RMSNorm):
    """As ``Gemma3RMSNorm``."""

    variant = "zero_centered"

    @property
    def variance_epsilon(self) -> float:
        """HF's name for it is another here."""
        return self.eps


class GatedMLP(InjectedModule):
    """As ``LlamaMLP``. The projections stay the modules that they are: with LoRA, sharded or quantised."""

    swiglu_mlp: Kernel | None = None

    @classmethod
    def kernel_needs(cls, module: Any) -> list[Need]:
        """The gated activation, in the variant of the config."""
        return [Need("swiglu_mlp", _activation(module))]

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., hidden_size] to [..., hidden_size]."""
        if self.swiglu_mlp is None:
            return self.stock.forward(self, x)
        return self.down_proj(self.swiglu_mlp(self.gate_proj(x), self.up_proj(x)))


class Experts(InjectedModule):
    """As ``Qwen3MoeExperts``."""

    moe_experts: Kernel | None = None

    @classmethod
    def kernel_needs(cls, module: Any) -> list[Need]:
        """The experts."""
        activation = _activation(module)
        return [Need("moe_experts", "standard" if activation == "silu" else activation)]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Map [T, H] to [T, H] through the chosen experts."""
        if self.moe_experts is None:
            return self.stock.forward(self, hidden_states, top_k_index, top_k_weights)
        return self.moe_experts(hidden_states, top_k_index, top_k_weights, self.gate_up_proj, self.down_proj)


def _activation(module: Any) -> str:
    """The variant for the config's activation; where there is none, its own name, which the container refuses."""
    config = module.config
    name = getattr(config, "hidden_act", None) or config.hidden_activation
    return ACTIVATION_VARIANTS.get(name, name)
