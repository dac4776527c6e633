"""Norm, feed-forward block, router, experts and decoder layer of a stock model, with kernels."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from kernelkit.containers.bindings import Need
from kernelkit.models.injection.module import InjectedModule
from kernelkit.models.layers.mlp import ACTIVATION_VARIANTS
from kernelkit.spec import Kernel


class Norm(InjectedModule):
    """A norm of the last dimension, in the variant of a class below."""

    variant: ClassVar[str]
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


class RMSNorm(Norm):
    """As ``LlamaRMSNorm``. A fused op may compute it, as it may our own."""

    variant = "standard"
    computes: ClassVar[str] = "rms_norm"


class ZeroCenteredRMSNorm(Norm):
    """As ``Gemma3RMSNorm``."""

    variant = "zero_centered"

    @property
    def variance_epsilon(self) -> float:
        """HF's name for it is another here."""
        return self.eps


class DecoderLayer(InjectedModule):
    """As ``LlamaDecoderLayer``: the sum that leaves the attention and the norm after it may be one op."""

    add_rms_norm: Kernel | None = None

    @classmethod
    def kernel_needs(cls, module: Any) -> list[Need]:
        """The sum with the norm."""
        return [Need("add_rms_norm")]

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As in HF, which passes all but the hidden states by name."""
        if self.add_rms_norm is None:
            return self.stock.forward(self, hidden_states, *args, **kwargs)
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states, normed = self.add_rms_norm(attended, hidden_states, self.post_attention_layernorm)
        return hidden_states + self.mlp(normed)


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


class TopKRouter(InjectedModule):
    """As ``Qwen3MoeTopKRouter``: the choice that follows its product."""

    moe_router: Kernel | None = None

    @classmethod
    def kernel_needs(cls, module: Any) -> list[Need]:
        """The choice."""
        return [Need("moe_router")]

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Route [..., H]: logits [T, E], weights and experts [T, K]."""
        if self.moe_router is None:
            return self.stock.forward(self, hidden_states)
        logits = F.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
        return logits, *self.moe_router(logits, self.top_k, self.norm_topk_prob)


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
