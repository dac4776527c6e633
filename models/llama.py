"""Llama (Touvron et al., arXiv:2302.13971), as ``transformers.LlamaForCausalLM``."""

from __future__ import annotations

from transformers import LlamaConfig

from kernelkit.models.layers.attention import Attention
from kernelkit.models.layers.causal_lm import CausalLM
from kernelkit.models.layers.decoder import DecoderLayer, DecoderModel
from kernelkit.models.layers.mlp import GatedMLP


class LlamaDecoderLayer(DecoderLayer):
    """Full attention, with biases only where the config asks for them, and a gated MLP."""


class LlamaModel(DecoderModel):
    """The decoder."""

    config_class = LlamaConfig
    _no_split_modules = ("LlamaDecoderLayer",)

    def make_layer(self, layer_idx: int) -> DecoderLayer:
        """One decoder layer."""
        config, kernels, bias = self.config, self.kernels, self.config.attention_bias
        attention = Attention(config, layer_idx, kernels, qkv_bias=bias, out_bias=bias)
        return LlamaDecoderLayer(config, kernels, attention, GatedMLP(config, kernels))


class LlamaForCausalLM(CausalLM):
    """The decoder with its head."""

    config_class = LlamaConfig
    model_class = LlamaModel
    _no_split_modules = ("LlamaDecoderLayer",)
