"""Qwen3, dense (Yang et al., arXiv:2505.09388), as ``transformers.Qwen3ForCausalLM``."""

from __future__ import annotations

from transformers import Qwen3Config

from kernelkit.containers.bindings import Need
from kernelkit.models.layers.attention import NormedAttention
from kernelkit.models.layers.causal_lm import CausalLM
from kernelkit.models.layers.decoder import DecoderLayer, DecoderModel
from kernelkit.models.layers.mlp import GatedMLP


class Qwen3DecoderLayer(DecoderLayer):
    """Attention with normalised queries and keys, sliding where ``layer_types`` says so, and a gated MLP."""


class Qwen3Model(DecoderModel):
    """The decoder."""

    config_class = Qwen3Config
    _no_split_modules = ("Qwen3DecoderLayer",)

    def make_layer(self, layer_idx: int) -> DecoderLayer:
        """One decoder layer."""
        config, kernels, bias = self.config, self.kernels, self.config.attention_bias
        attention = NormedAttention(config, layer_idx, kernels, qkv_bias=bias, out_bias=bias)
        return Qwen3DecoderLayer(config, kernels, attention, GatedMLP(config, kernels))

    @classmethod
    def kernel_needs(cls, config: Qwen3Config) -> list[Need]:
        """As any decoder, with the norms of queries and keys."""
        return [*super().kernel_needs(config), Need("qk_norm_rope")]


class Qwen3ForCausalLM(CausalLM):
    """The decoder with its head."""

    config_class = Qwen3Config
    model_class = Qwen3Model
    _no_split_modules = ("Qwen3DecoderLayer",)
