"""Qwen2 and Qwen2.5 (Yang et al., arXiv:2407.10671), as ``transformers.Qwen2ForCausalLM``."""

from __future__ import annotations

from transformers import Qwen2Config

from kernelkit.models.layers.attention import Attention
from kernelkit.models.layers.causal_lm import CausalLM
from kernelkit.models.layers.decoder import DecoderLayer, DecoderModel
from kernelkit.models.layers.mlp import GatedMLP


class Qwen2DecoderLayer(DecoderLayer):
    """Attention with biased projections, sliding where ``layer_types`` says so, and a gated MLP."""


class Qwen2Model(DecoderModel):
    """The decoder."""

    config_class = Qwen2Config
    _no_split_modules = ("Qwen2DecoderLayer",)

    def make_layer(self, layer_idx: int) -> DecoderLayer:
        """One decoder layer."""
        config, kernels = self.config, self.kernels
        attention = Attention(config, layer_idx, kernels, qkv_bias=True, out_bias=False)
        return Qwen2DecoderLayer(config, kernels, attention, GatedMLP(config, kernels))


class Qwen2ForCausalLM(CausalLM):
    """The decoder with its head."""

    config_class = Qwen2Config
    model_class = Qwen2Model
    _no_split_modules = ("Qwen2DecoderLayer",)
