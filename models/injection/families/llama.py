"""Llama."""

from __future__ import annotations

from transformers.models.llama import modeling_llama as hf

from kernelkit.models.injection.attention import Attention
from kernelkit.models.injection.blocks import DecoderLayer, GatedMLP, RMSNorm
from kernelkit.models.injection.causal_lm import CausalLM
from kernelkit.models.injection.decoder import Decoder, Model

STRUCTURE = (hf.LlamaRotaryEmbedding,)


class LlamaRMSNorm(RMSNorm, hf.LlamaRMSNorm):
    """Standard."""


class LlamaMLP(GatedMLP, hf.LlamaMLP):
    """Gated."""


class LlamaAttention(Attention, hf.LlamaAttention):
    """Fully rotated."""


class LlamaDecoderLayer(DecoderLayer, hf.LlamaDecoderLayer):
    """Two norms, two sums."""


class LlamaModel(Decoder, hf.LlamaModel):
    """The decoder."""


class LlamaForCausalLM(CausalLM, hf.LlamaForCausalLM):
    """With a head."""


class LlamaForSequenceClassification(Model, hf.LlamaForSequenceClassification):
    """With a classifier."""
