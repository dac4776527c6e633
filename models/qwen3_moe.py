"""Qwen3 with a mixture of experts (Yang et al., arXiv:2505.09388), as ``transformers.Qwen3MoeForCausalLM``."""

from __future__ import annotations

from transformers import Qwen3MoeConfig

from kernelkit.containers.bindings import Need
from kernelkit.models.layers.attention import NormedAttention
from kernelkit.models.layers.causal_lm import MoeCausalLM
from kernelkit.models.layers.decoder import DecoderLayer, DecoderModel, SparseDecoderLayer
from kernelkit.models.layers.mlp import GatedMLP
from kernelkit.models.layers.moe import SparseMoeBlock


class Qwen3MoeDecoderLayer(SparseDecoderLayer):
    """Attention with normalised queries and keys, and routed experts."""


class Qwen3MoeDenseDecoderLayer(DecoderLayer):
    """Attention with normalised queries and keys, and a gated MLP in place of the experts."""


class Qwen3MoeModel(DecoderModel):
    """The decoder."""

    config_class = Qwen3MoeConfig
    _no_split_modules = ("Qwen3MoeDecoderLayer", "Qwen3MoeDenseDecoderLayer")

    def make_layer(self, layer_idx: int) -> DecoderLayer:
        """One decoder layer, sparse or dense."""
        config, kernels, bias = self.config, self.kernels, self.config.attention_bias
        attention = NormedAttention(config, layer_idx, kernels, qkv_bias=bias, out_bias=bias)
        if is_sparse(config, layer_idx):
            return Qwen3MoeDecoderLayer(config, kernels, attention, SparseMoeBlock(config, kernels))
        return Qwen3MoeDenseDecoderLayer(config, kernels, attention, GatedMLP(config, kernels))

    @classmethod
    def kernel_needs(cls, config: Qwen3MoeConfig) -> list[Need]:
        """As any decoder, with norms of queries and keys, router and experts, and the dense block where one is."""
        sparse = [is_sparse(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        needs = [need for need in super().kernel_needs(config) if need.op != "swiglu_mlp" or not all(sparse)]
        routed = [Need("moe_router"), Need("moe_experts")] if any(sparse) else []
        return [*needs, Need("qk_norm_rope"), *routed]


class Qwen3MoeForCausalLM(MoeCausalLM):
    """The decoder with its head."""

    config_class = Qwen3MoeConfig
    model_class = Qwen3MoeModel
    _no_split_modules = ("Qwen3MoeDecoderLayer", "Qwen3MoeDenseDecoderLayer")


def is_sparse(config: Qwen3MoeConfig, layer_idx: int) -> bool:
    """Whether the layer at ``layer_idx`` routes to experts."""
    every = (layer_idx + 1) % config.decoder_sparse_step == 0
    return layer_idx not in config.mlp_only_layers and config.num_experts > 0 and every
